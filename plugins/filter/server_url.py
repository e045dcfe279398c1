# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: server_url
short_description: Make the URL of a server from its parts
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns a URL in which user, password and path are percent-encoded, so that they may hold any character.
positional: scheme, port, user, password, path, options
options:
  _input:
    description: Name or address of the host; an IPv6 address gets its brackets.
    type: str
    required: true
  scheme:
    description: Scheme, such as V(redis) or V(amqp).
    type: str
    required: true
  port:
    description: Port.
    type: int
    required: true
  user:
    description: Name of the user.
    type: str
    required: true
  password:
    description: Password of the user.
    type: str
    required: true
  path:
    description: Number of the database, or name of the virtual host.
    type: raw
    required: true
  options:
    description: What stands in the query; an option without a value is left out.
    type: dict
    default: {}
    version_added: 0.2.0
"""

EXAMPLES = r"""
- name: Show where tasks go
  ansible.builtin.debug:
    msg: "{{ 'broker1' | celeryops.hybrid.server_url('redis', 6379, 'celery', redis_password, 0) }}"

- name: Show where results go, encrypted
  ansible.builtin.debug:
    msg: "{{ 'results1' | celeryops.hybrid.server_url('amqps', 5671, 'client', password, 'celery', options) }}"
  vars:
    options: {ca_certs: /etc/ca.pem}
    password: "{{ rabbitmq_client_password }}"
"""

RETURN = r"""
_value:
  description: The URL.
  type: str
  sample: redis://celery:a%40b@broker1:6379/0
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._urls import server_url


class FilterModule:
    """Filters of celeryops.hybrid about servers."""

    def filters(self):
        return {"server_url": server_url}

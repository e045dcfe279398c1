# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: connection_problems
short_description: Say which server does not allow the connections that the workers may need
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Adds up what all instances of all hosts may need, from their pools and concurrency, and compares it with the limits
    of Redis and RabbitMQ, before anything changes.
positional: redis, rabbitmq, others
options:
  _input:
    description:
      - For each host, by its name, C(instances) as in C(worker_instances), C(concurrency) of those that declare none,
        and C(pool_limit).
    type: dict
    required: true
  redis:
    description: C(maxclients) and C(nofile) of Redis; empty for a server that others look after.
    type: dict
    required: true
  rabbitmq:
    description: C(nofile) and C(connection_max) of RabbitMQ; empty for a server that others look after.
    type: dict
    required: true
  others:
    description: Connections to each server that everything else needs.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Refuse more connections than Redis takes
  ansible.builtin.assert:
    that: >-
      {'worker1': {'instances': [{'name': 'default', 'concurrency': 8}]}}
      | celeryops.hybrid.connection_problems({'maxclients': 10000, 'nofile': 65535}, {}) == []
"""

RETURN = r"""
_value:
  description: A sentence for each server that allows too few.
  type: list
  elements: str
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._budget import connection_problems


class FilterModule:
    """Filters of celeryops.hybrid about connections."""

    def filters(self):
        return {"connection_problems": connection_problems}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rabbitmq_password_hash
short_description: Hash a password as RabbitMQ stores it
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns a salted SHA-256 digest, another one each time, so that the password itself need not reach a file.
options:
  _input:
    description: The password.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a user as definitions have it
  ansible.builtin.debug:
    msg: "{{ {'name': 'admin', 'password_hash': password | celeryops.hybrid.rabbitmq_password_hash} }}"
"""

RETURN = r"""
_value:
  description: Salt and digest in base64, for the algorithm C(rabbit_password_hashing_sha256).
  type: str
"""

from ansible.errors import AnsibleFilterError


def rabbitmq_password_hash(value):
    # Not above: Ansible loads all filters for every task that uses one, and this brings an HTTP client.
    from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import password_hash

    try:
        return password_hash(value)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_password_hash: {error}") from error


class FilterModule:
    """The filter rabbitmq_password_hash."""

    def filters(self):
        return {"rabbitmq_password_hash": rabbitmq_password_hash}

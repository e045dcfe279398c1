# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rabbitmq_partitions_problem
short_description: Say why the number of archive streams cannot be changed
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns an empty string when the node has no archive streams, or as many as declared.
positional: vhost, partitions
options:
  _input:
    description: What the management API exported.
    type: dict
    required: true
  vhost:
    description: The vhost.
    type: str
    required: true
  partitions:
    description: The declared number.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Refuse another number
  ansible.builtin.assert:
    that: answer.json | celeryops.hybrid.rabbitmq_partitions_problem('celery', 16) == ''
"""

RETURN = r"""
_value:
  description: Empty, or the reason.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rabbitmq import partitions_problem


def rabbitmq_partitions_problem(value, vhost, partitions):
    try:
        return partitions_problem(value, vhost, partitions)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_partitions_problem: {error}") from error


class FilterModule:
    """The filter rabbitmq_partitions_problem."""

    def filters(self):
        return {"rabbitmq_partitions_problem": rabbitmq_partitions_problem}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_celery_rules
short_description: Give the least rights with which Celery runs on a Redis database
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns rules of Redis' ACL language for the keys, channels and commands that Celery's workers and clients use.
options:
  _input:
    description: Number of the database. The channels of remote control and events carry it.
    type: int
    required: true
  role:
    description:
      - V(worker), or V(producer) for an application that only sends tasks. That one can neither read nor take nor
        delete what is in a queue, and can write into O(queues) alone.
    type: str
    choices: [worker, producer]
    default: worker
  keys:
    description: Patterns of the keys of workers.
    type: list
    elements: str
    default: ['*']
  commands:
    description: More commands, for a version of Celery that needs them.
    type: list
    elements: str
    default: []
  queues:
    description:
      - Queues that a producer may send to, in all their priorities, and exchanges that are called otherwise than their
        queue.
    type: list
    elements: str
    default: [celery]
"""

EXAMPLES = r"""
- name: Show the rules for database 0
  ansible.builtin.debug:
    msg: "{{ 0 | celeryops.hybrid.redis_celery_rules }}"

- name: Show the rules of an application that only sends tasks
  ansible.builtin.debug:
    msg: "{{ 0 | celeryops.hybrid.redis_celery_rules('producer') }}"
"""

RETURN = r"""
_value:
  description: The rules.
  type: list
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import celery_rules


def redis_celery_rules(value, role="worker", keys=("*",), commands=(), queues=("celery",)):
    try:
        return celery_rules(value, role, keys, commands, queues)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_celery_rules: {error}") from error


class FilterModule:
    """The filter redis_celery_rules."""

    def filters(self):
        return {"redis_celery_rules": redis_celery_rules}

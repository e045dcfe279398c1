# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_write_script
short_description: Give the redis-cli commands that repair a running Redis
version_added: 0.1.0
author: celeryops.hybrid contributors
description:
  - Takes what P(celeryops.hybrid.redis_differences#filter) found and returns commands
    for the standard input of C(redis-cli).
positional: found
options:
  _input:
    description: User and password to log in with.
    type: dict
    required: true
  found:
    description: What P(celeryops.hybrid.redis_differences#filter) returned.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Repair the running state
  ansible.builtin.command:
    cmd: redis-cli
    stdin: "{{ login | celeryops.hybrid.redis_write_script(found) }}"
"""

RETURN = r"""
_value:
  description: The commands, one a line.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import write_script


def redis_write_script(value, found):
    try:
        return write_script(value, found)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_write_script: {error}") from error


class FilterModule:
    """The filter redis_write_script."""

    def filters(self):
        return {"redis_write_script": redis_write_script}

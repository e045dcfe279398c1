# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_read_script
short_description: Give the redis-cli commands that read the running state
version_added: 0.1.0
author: celeryops.hybrid contributors
description:
  - The commands are for the standard input of C(redis-cli), so that the password is in no argument list.
positional: settings, users
options:
  _input:
    description: User and password to log in with.
    type: dict
    required: true
  settings:
    description: The declared settings.
    type: list
    elements: dict
    required: true
  users:
    description: The declared users.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Read the running state
  ansible.builtin.command:
    cmd: redis-cli
    stdin: "{{ login | celeryops.hybrid.redis_read_script(settings, users) }}"
  changed_when: false
"""

RETURN = r"""
_value:
  description: The commands, one a line.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import read_script


def redis_read_script(value, settings, users):
    try:
        return read_script(value, settings, users)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_read_script: {error}") from error


class FilterModule:
    """The filter redis_read_script."""

    def filters(self):
        return {"redis_read_script": redis_read_script}

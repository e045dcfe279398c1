# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_differences
short_description: Compare a running Redis with its declaration
version_added: 0.1.0
author: celeryops.hybrid contributors
description:
  - Reads the answer to the commands of P(celeryops.hybrid.redis_read_script#filter).
  - Says for each setting whether it can be changed without a restart.
positional: settings, users
options:
  _input:
    description: Standard output and standard error of redis-cli, as lines or as text.
    type: raw
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
- name: Show the differences in words
  ansible.builtin.debug:
    msg: "{{ (answer.stdout | celeryops.hybrid.redis_differences(settings, users)).sentences }}"
"""

RETURN = r"""
_value:
  description: The differences, with C(status), C(settings), C(users), C(live), C(restart) and C(sentences).
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import differences


def redis_differences(value, settings, users):
    try:
        return differences(value, settings, users)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_differences: {error}") from error


class FilterModule:
    """The filter redis_differences."""

    def filters(self):
        return {"redis_differences": redis_differences}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_bytes
short_description: Convert a size as Redis writes it into bytes
version_added: 0.1.0
author: celeryops.hybrid contributors
description:
  - Redis takes C(mb) as 1024 times 1024 and C(m) as 1000 times 1000.
options:
  _input:
    description: The size, such as V(512mb).
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Show half a gibibyte in bytes
  ansible.builtin.debug:
    msg: "{{ '512mb' | celeryops.hybrid.redis_bytes }}"
"""

RETURN = r"""
_value:
  description: Number of bytes.
  type: int
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import size_in_bytes


def redis_bytes(value):
    try:
        return size_in_bytes(value)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_bytes: {error}") from error


class FilterModule:
    """The filter redis_bytes."""

    def filters(self):
        return {"redis_bytes": redis_bytes}

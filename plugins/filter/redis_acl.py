# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_acl
short_description: Render users as a Redis ACL file
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Passwords become SHA-256 digests. An ACL file cannot hold comments.
options:
  _input:
    description: The users; each a dictionary with C(name), C(enabled), C(password) and C(rules).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show a rendered user
  ansible.builtin.debug:
    msg: "{{ [{'name': 'default', 'enabled': false}] | celeryops.hybrid.redis_acl }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import render_acl


def redis_acl(value):
    try:
        return render_acl(value)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_acl: {error}") from error


class FilterModule:
    """The filter redis_acl."""

    def filters(self):
        return {"redis_acl": redis_acl}

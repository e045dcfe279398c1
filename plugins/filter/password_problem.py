# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: password_problem
short_description: Say why a value cannot serve as a password
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns an empty string for a password that the roles accept, else the reason as the rest of a sentence
    that starts with the name of the variable. The value itself never appears in it.
  - A password is refused when it is missing, no string, contains control characters, has fewer than 16 characters
    or fewer than 6 different ones, or is the name of its user.
positional: user
options:
  _input:
    description: The password.
    type: raw
    required: true
  user:
    description: Name of the user that the password belongs to.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Refuse a weak password
  ansible.builtin.assert:
    that: redis_password | celeryops.hybrid.password_problem('celery') == ''
    fail_msg: "redis_password {{ redis_password | celeryops.hybrid.password_problem('celery') }}."
"""

RETURN = r"""
_value:
  description: Empty, or the reason.
  type: str
  sample: 'is weak: it has fewer than 16 characters'
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._secrets import password_problem


class FilterModule:
    """Filters of celeryops.hybrid about passwords."""

    def filters(self):
        return {"password_problem": password_problem}

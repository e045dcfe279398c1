# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: erlang_cookie_problem
short_description: Say why a value cannot stay an Erlang cookie
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns an empty string for a cookie that is long and varied enough, else the reason as the rest of a sentence.
    The cookie itself never appears in it.
options:
  _input:
    description: The cookie.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Check whether the cookie has to be replaced
  ansible.builtin.debug:
    msg: "{{ cookie | celeryops.hybrid.erlang_cookie_problem }}"
"""

RETURN = r"""
_value:
  description: Empty, or the reason.
  type: str
  sample: 'is weak: it has fewer than 32 characters'
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._secrets import erlang_cookie_problem


class FilterModule:
    """Filters of celeryops.hybrid about Erlang cookies."""

    def filters(self):
        return {"erlang_cookie_problem": erlang_cookie_problem}

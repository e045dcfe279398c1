# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_problems
short_description: List the rules that a declaration of a Redis server breaks
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Checks the rules that hold across the variables of the role celeryops.hybrid.redis, before anything changes.
options:
  _input:
    description: The role's variables by name, and what the role knows of the host.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse a declaration that breaks a rule
  ansible.builtin.assert:
    that: __redis_declaration | celeryops.hybrid.redis_problems | length == 0
    fail_msg: "{{ __redis_declaration | celeryops.hybrid.redis_problems | join('\n') }}"
"""

RETURN = r"""
_value:
  description: One sentence for every broken rule, with variable, rule and remedy. No password is in it.
  type: list
  elements: str
  sample:
    - redis_port (0) and redis_tls_port (1) must be two different ports, 1 to 65535.
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._servers import redis_problems


class FilterModule:
    """The filter redis_problems."""

    def filters(self):
        return {"redis_problems": redis_problems}

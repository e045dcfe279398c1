# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: worker_problems
short_description: Say which rules a declaration of workers breaks
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Checks the rules that hold across the variables of the role celeryops.hybrid.worker, before anything changes.
  - Runs on the control node, and looks there for the application that is to be installed.
options:
  _input:
    description: The role's variables by name, and what the role computed from the inventory.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse a declaration that breaks a rule
  ansible.builtin.assert:
    that: __worker_declared | celeryops.hybrid.worker_problems | length == 0
    fail_msg: "{{ __worker_declared | celeryops.hybrid.worker_problems | join('\n') }}"
"""

RETURN = r"""
_value:
  description: One sentence for every broken rule, with variable, rule and remedy.
  type: list
  elements: str
  sample: ["task_default_priority in worker_settings is 12: it must be 0 (first) to 9 (last)."]
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._worker import worker_problems


class FilterModule:
    """Filters of celeryops.hybrid about workers."""

    def filters(self):
        return {"worker_problems": worker_problems}

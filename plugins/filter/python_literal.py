# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: python_literal
short_description: Write a value as a Python literal
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns strings, numbers, booleans, none, lists and dictionaries as Python writes them.
  - Long ones get one entry a line.
options:
  _input:
    description: The value.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Show a setting as it stands in celeryconfig.py
  ansible.builtin.debug:
    msg: "task_routes = {{ {'reports.*': {'queue': 'slow'}} | celeryops.hybrid.python_literal }}"
"""

RETURN = r"""
_value:
  description: The literal.
  type: str
  sample: "{'reports.*': {'queue': 'slow'}}"
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rendering import python_literal


class FilterModule:
    """Filters of celeryops.hybrid about rendered files."""

    def filters(self):
        return {"python_literal": python_literal}

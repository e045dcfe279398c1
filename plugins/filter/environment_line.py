# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: environment_line
short_description: Write a line of an environment file
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns C(NAME="value"), quoted so that systemd and a shell read the same value from it.
positional: name
options:
  _input:
    description: The value. It may not contain a line break.
    type: raw
    required: true
  name:
    description: Name of the environment variable.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a line
  ansible.builtin.debug:
    msg: "{{ 'a $100 \"bill\"' | celeryops.hybrid.environment_line('PRICE') }}"
"""

RETURN = r"""
_value:
  description: The line, without its end.
  type: str
  sample: PRICE="a \$100 \"bill\""
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rendering import environment_line


class FilterModule:
    """Filters of celeryops.hybrid about rendered files."""

    def filters(self):
        return {"environment_line": environment_line}

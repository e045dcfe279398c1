# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: release_table
short_description: Show which host serves which release
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Makes a table for people, with a line for each host.
options:
  _input:
    description: A dictionary for each host, with C(host), C(version), C(checksum), C(since) and C(outcome).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show who has what
  ansible.builtin.debug:
    msg: "{{ [{'host': 'worker1', 'version': 'shop 1.2', 'outcome': 'released'}] | celeryops.hybrid.release_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._release import release_table


class FilterModule:
    """Filters of celeryops.hybrid about releases."""

    def filters(self):
        return {"release_table": release_table}

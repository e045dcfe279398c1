# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: release_history
short_description: Add a release to those that a host has served
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns the history of a host's releases after one was taken into use.
  - Going back to an earlier one forgets those after it.
positional: taken, former
options:
  _input:
    description:
      - The history, the release in use last.
      - Each has C(release), C(environment), C(version), C(checksum), C(since).
    type: list
    elements: dict
    required: true
  taken:
    description: The release that is in use now.
    type: dict
    required: true
  former:
    description: The environment that was in use before; added when the history does not know it.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Note what is in use
  ansible.builtin.set_fact:
    history: "{{ [] | celeryops.hybrid.release_history({'environment': '/opt/celery/environments/b'}) }}"
"""

RETURN = r"""
_value:
  description: The history.
  type: list
  elements: dict
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._release import release_history


class FilterModule:
    """Filters of celeryops.hybrid about releases."""

    def filters(self):
        return {"release_history": release_history}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: release_target
short_description: Say which release a host goes back to
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Hosts that serve the newest release go back to the one before. The others, left behind by a release that was stopped
    half-way, stay.
positional: host
options:
  _input:
    description: The history of each host, by its name, as P(celeryops.hybrid.release_history#filter) makes them.
    type: dict
    required: true
  host:
    description: The host that is asked about.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Find the release to go back to
  ansible.builtin.set_fact:
    target: "{{ histories | celeryops.hybrid.release_target(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The release, or nothing when the host stays where it is.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._release import release_target


def _release_target(histories, host):
    try:
        return release_target(histories, host) or {}
    except ValueError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Filters of celeryops.hybrid about releases."""

    def filters(self):
        return {"release_target": _release_target}

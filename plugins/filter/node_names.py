# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: node_names
short_description: Name the nodes of the workers of a host
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns C(NAME@HOST) for each instance, as the worker role names the nodes.
options:
  _input:
    description: The C(worker_instances) of the host. Empty stands for the default of the role.
    type: list
    elements: dict
    required: true
  host:
    description: Name of the host in the inventory.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the nodes of this host
  ansible.builtin.debug:
    msg: "{{ worker_instances | default([]) | celeryops.hybrid.node_names(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The names.
  type: list
  elements: str
  sample: [default@worker1, slow@worker1]
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._worker import node_names


class FilterModule:
    """The filter node_names."""

    def filters(self):
        return {"node_names": node_names}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: run_lock
short_description: Let one run at a time work on a host
version_added: 0.1.0
author:
  - celeryops.hybrid contributors (@celeryops)
description:
  - Takes a host for this run of C(ansible-playbook), until it ends, among all runs on this control node.
  - To be used in a task. Taken again by the same run, it says nothing.
options:
  _terms:
    description: Addresses of hosts.
    required: true
"""

EXAMPLES = r"""
- name: One run at a time
  ansible.builtin.assert:
    that: other == ''
    fail_msg: "{{ other }}"
  vars:
    other: "{{ lookup('celeryops.hybrid.run_lock', ansible_host | default(inventory_hostname)) }}"
"""

RETURN = r"""
_raw:
  description: For each host an empty text, or a sentence that says which other run works on it.
  type: list
  elements: str
"""

import os

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._run_lock import lock_file, take


class LookupModule(LookupBase):
    """Take hosts for this run."""

    def run(self, terms, variables=None, **kwargs):  # noqa: ARG002
        return [self._sentence(str(term)) for term in terms]

    def _sentence(self, address):
        path = lock_file(address)
        try:
            # Tasks run in children of the process that is the run.
            holder = take(path, os.getppid())
        except OSError as exc:
            raise AnsibleError(
                f"{exc.filename or path} on the control node cannot be used to keep runs apart: {exc.strerror}."
            ) from exc
        if holder is None:
            return ""
        process = holder["process"]
        return (
            f"Another run is working on {address}: process {process} of {holder['user']} on this control node, since "
            f"{holder['since']}. Wait until it has ended, then run this again; 'ps -fp {process}' shows it."
        )

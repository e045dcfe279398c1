# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: host_limits
short_description: Read from /proc what a host allows its services
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns C(nofile), the highest number of descriptors that systemd can give
    to a service, C(somaxconn), C(overcommit_memory), C(transparent_hugepage), and C(kernel_writable).
options:
  _input:
    description: Output of C(grep -s "") over the files in /proc.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the limits
  ansible.builtin.debug:
    msg: "{{ limits.stdout | celeryops.hybrid.host_limits }}"
"""

RETURN = r"""
_value:
  description: The limits.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._limits import host_limits as _host_limits


def host_limits(value):
    try:
        return _host_limits(value)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.host_limits: {error}") from error


class FilterModule:
    """The filter host_limits."""

    def filters(self):
        return {"host_limits": host_limits}

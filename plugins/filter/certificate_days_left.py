# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: certificate_days_left
short_description: Tell how long certificates are valid
version_added: 0.2.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns the number of whole days until the first of the certificates ends.
options:
  _input:
    description: One or more certificates in PEM form.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show how long the CA lasts
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', '/srv/tls/ca.pem') | celeryops.hybrid.certificate_days_left }} days"
"""

RETURN = r"""
_value:
  description: Days, negative when a certificate has ended.
  type: int
  sample: 364
"""

from ansible.errors import AnsibleFilterError


def certificate_days_left(value):
    # Not above: Ansible loads all filters for every task that uses one, and cryptography takes longer than the task.
    from ansible_collections.celeryops.hybrid.plugins.plugin_utils._certificates import days_left

    try:
        return days_left(value)
    except (ValueError, AttributeError) as error:
        raise AnsibleFilterError(
            f"celeryops.hybrid.certificate_days_left: no certificate in PEM form: {error}"
        ) from error


class FilterModule:
    """Filters of celeryops.hybrid about certificates."""

    def filters(self):
        return {"certificate_days_left": certificate_days_left}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: certificate_problems
short_description: Say why a server or a client cannot work with its certificate
version_added: 0.2.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Checks certificate, key and CA before any of them reaches a host. They must be there, go together, be valid
    now, have the names that clients use, and the CA must have signed the certificate.
  - A sentence names setting, path and remedy, and never shows what a file holds.
positional: prefix, paths, names
options:
  _input:
    description: What the files hold, as C(certificate), C(key) and C(ca); empty where there is no such file.
    type: dict
    required: true
  prefix:
    description: What the names of the settings begin with, such as V(redis_tls).
    type: str
    required: true
  paths:
    description: The paths of the files, by the same names as their contents. What has no path is not wanted.
    type: dict
    required: true
  names:
    description: Names and addresses that clients use; the certificate must have all of them.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Refuse a CA that cannot be used
  ansible.builtin.assert:
    that: problems == []
    fail_msg: "{{ problems | join('\n') }}"
  vars:
    path: /srv/tls/ca.pem
    texts: "{{ {'ca': lookup('ansible.builtin.file', path)} }}"
    problems: "{{ texts | celeryops.hybrid.certificate_problems('redis_tls', {'ca': path}) }}"
"""

RETURN = r"""
_value:
  description: One sentence for each problem.
  type: list
  elements: str
  sample: ["redis_tls_certificate (/srv/tls/broker1.pem) has expired on 2026-01-31. Renew it."]
"""


def certificate_problems(value, *arguments, **options):
    # Not above: Ansible loads all filters for every task that uses one, and cryptography takes longer than the task.
    from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _certificates

    return _certificates.certificate_problems(value, *arguments, **options)


class FilterModule:
    """Filters of celeryops.hybrid about certificates."""

    def filters(self):
        return {"certificate_problems": certificate_problems}

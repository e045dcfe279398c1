# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: url_endpoints
short_description: List the servers that a URL names
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns host and port of every URL, with the default port of the scheme where none is given.
  - Sockets of the host itself are left out.
options:
  _input:
    description: A URL, or several joined by semicolons.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Wait until every server answers
  ansible.builtin.wait_for:
    host: "{{ item.host }}"
    port: "{{ item.port }}"
  loop: "{{ worker_result_backend | celeryops.hybrid.url_endpoints }}"
"""

RETURN = r"""
_value:
  description: One dictionary with C(host) and C(port) for each server.
  type: list
  elements: dict
  sample: [{'host': 'results1', 'port': 5672}]
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._urls import url_endpoints


class FilterModule:
    """Filters of celeryops.hybrid about servers."""

    def filters(self):
        return {"url_endpoints": url_endpoints}

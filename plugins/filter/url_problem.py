# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: url_problem
short_description: Return why a value is not a URL of a broker or a result store
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Returns an empty string for a URL that Celery will take, else the reason as the rest of a sentence
    that starts with the name of the variable. The value itself never appears in it.
  - Several URLs, of the nodes of a cluster or of sentinels, are joined by semicolons.
positional: kind
options:
  _input:
    description: The URL.
    type: raw
    required: true
  kind:
    description: What the URL is for.
    type: str
    choices: [broker, results]
    required: true
"""

EXAMPLES = r"""
- name: Refuse a malformed URL
  ansible.builtin.assert:
    that: worker_broker_url | celeryops.hybrid.url_problem('broker') == ''
    fail_msg: "worker_broker_url {{ worker_broker_url | celeryops.hybrid.url_problem('broker') }}."
"""

RETURN = r"""
_value:
  description: Empty, or the reason.
  type: str
  sample: 'has no password; it looks like redis://user:password@host:6379/0'
"""

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._urls import url_problem


class FilterModule:
    """Filters of celeryops.hybrid about servers."""

    def filters(self):
        return {"url_problem": url_problem}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_conf
short_description: Render settings as the lines of a redis.conf
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Each setting is a dictionary with C(name), C(value) and, if there is a reason to tell, C(why),
    which becomes a comment.
options:
  _input:
    description: The settings.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show a rendered setting
  ansible.builtin.debug:
    msg: "{{ [{'name': 'appendonly', 'value': true}] | celeryops.hybrid.redis_conf }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import render_config


def redis_conf(value):
    try:
        return render_config(value)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.redis_conf: {error}") from error


class FilterModule:
    """The filter redis_conf."""

    def filters(self):
        return {"redis_conf": redis_conf}

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rabbitmq_difference
short_description: Compare a declared topology with the definitions of a RabbitMQ node
version_added: 0.1.0
author: celeryops.hybrid contributors
description:
  - The topology is shaped like the definitions, with clear passwords, which are compared by their salted hashes.
  - What is not declared is not looked at.
positional: definitions
options:
  _input:
    description: The declared topology.
    type: dict
    required: true
  definitions:
    description: What the management API exported.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the differences in words
  ansible.builtin.debug:
    msg: "{{ (topology | celeryops.hybrid.rabbitmq_difference(answer.json)).sentences }}"
"""

RETURN = r"""
_value:
  description: C(payload), the definitions to import, C(sentences), and C(conflicts), which nothing can change in place.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq import difference


def rabbitmq_difference(value, definitions):
    try:
        return difference(value, definitions)
    except (ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_difference: {error}") from error


class FilterModule:
    """The filter rabbitmq_difference."""

    def filters(self):
        return {"rabbitmq_difference": rabbitmq_difference}

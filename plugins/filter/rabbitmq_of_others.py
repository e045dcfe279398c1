# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rabbitmq_of_others
short_description: Name what others have declared on a RabbitMQ and a first run would delete
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Takes the definitions of a node, and returns the objects that are neither declared nor protected.
  - Returns nothing for a node on which an earlier run has declared the vhost.
positional: topology, vhost, prune, protected
options:
  _input:
    description: What the management API or C(rabbitmqctl export_definitions) exported.
    type: dict
    required: true
  topology:
    description: The declared topology, a dictionary of the options of M(celeryops.hybrid.rabbitmq_topology).
    type: dict
    required: true
  vhost:
    description: The vhost of the deployment.
    type: str
    required: true
  prune:
    description: Kinds of objects that are deleted when they are not declared.
    type: list
    elements: str
    required: true
  protected:
    description: Names that stay, as regular expressions of whole names.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse to delete what others have declared
  ansible.builtin.assert:
    that: answer.json | celeryops.hybrid.rabbitmq_of_others(topology, 'celery', ['users'], []) == []
"""

RETURN = r"""
_value:
  description: The objects, each with its kind and name.
  type: list
  elements: str
  sample: [users shop, policies celery/ha]
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import (
    DeclarationError,
    Prune,
    of_others,
)


def rabbitmq_of_others(value, topology, vhost, prune, protected):
    try:
        return of_others(value, topology, vhost, Prune(prune, [vhost], protected))
    except (DeclarationError, ValueError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_of_others: {error}") from error


class FilterModule:
    """The filter rabbitmq_of_others."""

    def filters(self):
        return {"rabbitmq_of_others": rabbitmq_of_others}

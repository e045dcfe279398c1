# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rabbitmq_objects
short_description: Fill values into the file of what must exist in RabbitMQ
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - The package C(celery-hybrid) and the role P(celeryops.hybrid.rabbitmq#role) share one file,
    C(rabbitmq/topology.json) of the package.
  - Returns its objects by their kind, as M(celeryops.hybrid.rabbitmq_topology) takes them.
positional: values
options:
  _input:
    description: The content of the file.
    type: dict
    required: true
  values:
    description: The value of each name that stands in the file as C(${name}).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what must exist
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'topology.json') | from_json | celeryops.hybrid.rabbitmq_objects(values) }}"
  vars:
    values: {vhost: celery, partitions: 16, result_expires: 86400}
"""

RETURN = r"""
_value:
  description: Lists of objects, by C(vhosts), C(users), C(queues) and so on.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rabbitmq_objects import objects


def rabbitmq_objects(value, values):
    try:
        return objects(value, values)
    except KeyError as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_objects: no value for {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"celeryops.hybrid.rabbitmq_objects: {error}") from error


class FilterModule:
    """The filter rabbitmq_objects."""

    def filters(self):
        return {"rabbitmq_objects": rabbitmq_objects}

#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_objects_info
short_description: Read objects of a RabbitMQ as its management API lists them
version_added: 0.1.0
description:
  - Returns what the management API says of exchanges, queues and so on, with their state, in one task.
    M(celeryops.hybrid.rabbitmq_topology_info) returns what is declared, in the form of a declaration.
author:
  - celeryops.hybrid contributors (@celeryops)
extends_documentation_fragment:
  - celeryops.hybrid.rabbitmq_api
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
options:
  vhost:
    description: Virtual host whose objects are returned. Nodes and the overview belong to none.
    type: str
    required: true
  objects:
    description:
      - The kinds to read, C(bindings), C(exchanges), C(nodes), C(overview), C(policies) and C(queues), each with the
        fields to return. An empty list stands for all fields; a long list of queues costs much with all of them.
    type: dict
    required: true
seealso:
  - module: celeryops.hybrid.rabbitmq_topology_info
"""

EXAMPLES = r"""
- name: Read which policy applies to each queue
  celeryops.hybrid.rabbitmq_objects_info:
    username: monitoring
    password: "{{ rabbitmq_monitoring_password }}"
    vhost: celery
    objects:
      queues: [name, policy, messages]
  register: rabbitmq
"""

RETURN = r"""
objects:
  description: What the API says, by kind.
  returned: success
  type: dict
  sample:
    queues:
      - {name: celery.dead_letters, policy: celery.dead_letters, messages: 2}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import (
    ApiError,
    api_arguments,
    api_from,
    objects_of,
)


def main() -> None:
    """Run the module."""
    specification = {
        **api_arguments(),
        "vhost": {"type": "str", "required": True},
        "objects": {"type": "dict", "required": True},
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    try:
        found = objects_of(api_from(module.params), module.params["vhost"], module.params["objects"])
    except (ApiError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, objects=found)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_topology_info
short_description: Read what a RabbitMQ holds, as a declaration
version_added: 0.1.0
description:
  - Returns virtual hosts, users, permissions, policies, exchanges, queues, bindings, parameters and limits in the form
    of the options of M(celeryops.hybrid.rabbitmq_topology), so that they can be declared as they are.
  - Passwords and their hashes are left out, and secrets in parameters masked; a declaration with a mask is refused.
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
  vhosts:
    description: Virtual hosts whose objects are returned. Without it, those of all are.
    type: list
    elements: str
  defaults:
    description: Whether values are returned that are the module's defaults.
    type: bool
    default: false
seealso:
  - module: celeryops.hybrid.rabbitmq_topology
"""

EXAMPLES = r"""
- name: Read what the vhost holds
  celeryops.hybrid.rabbitmq_topology_info:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    vhosts: [celery]
  register: rabbitmq

- name: Print it, to be pasted into a declaration
  ansible.builtin.debug:
    msg: "{{ rabbitmq.topology | to_nice_yaml(indent=2) }}"
"""

RETURN = r"""
topology:
  description: Lists of objects, by the name of the option that declares them. Kinds without objects are left out.
  returned: success
  type: dict
  sample:
    vhosts:
      - {name: celery}
    queues:
      - {vhost: celery, name: celery.results.0, type: stream, arguments: {x-stream-max-segment-size-bytes: 16000000}}
version:
  description: Version of RabbitMQ.
  returned: success
  type: str
  sample: 4.0.5
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ApiError, api_arguments, api_from
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import actual, declaration, read


def main() -> None:
    """Run the module."""
    specification = {
        **api_arguments(),
        "vhosts": {"type": "list", "elements": "str"},
        "defaults": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    try:
        definitions = read(api_from(module.params), vhost_details=True)
    except ApiError as exc:
        module.fail_json(msg=str(exc))
    topology = declaration(actual(definitions), module.params["vhosts"], module.params["defaults"])
    module.exit_json(changed=False, topology=topology, version=definitions["rabbitmq_version"])


if __name__ == "__main__":
    main()

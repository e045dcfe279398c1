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
    description: Virtual host whose objects are returned. Required for all kinds that belong to one.
    type: str
  objects:
    description:
      - The kinds to read, each with the fields to return. An empty list stands for all fields; a long list of queues
        costs much with all of them.
      - C(bindings), C(exchanges), C(policies) and C(queues) belong to O(vhost). C(definitions), C(nodes), C(overview)
        and C(whoami), the user who asks, belong to the server.
      - The C(definitions) hold the hashes of all passwords and the secrets in parameters, so use C(no_log) with them.
    type: dict
    required: true
  allowed_failures:
    description:
      - Failures that RV(status) returns, for a server that is still to be set up. Every other one is an error.
      - V(refused) is a server that answers and does not accept O(username) and O(password) (HTTP 401).
        V(unreachable) is a server that does not answer.
    type: list
    elements: str
    choices: [refused, unreachable]
    default: []
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

- name: Wait until the management API answers, whatever the password
  celeryops.hybrid.rabbitmq_objects_info:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    objects: {whoami: []}
    allowed_failures: [refused]
  register: answer
  until: answer is succeeded
  retries: 60
  delay: 1
"""

RETURN = r"""
objects:
  description: What the API says, by kind.
  returned: when RV(status) is V(read)
  type: dict
  sample:
    queues:
      - {name: celery.dead_letters, policy: celery.dead_letters, messages: 2}
status:
  description: V(read), or which of O(allowed_failures) there was, V(refused) or V(unreachable).
  returned: success
  type: str
  sample: read
reason:
  description: Why nothing was read.
  returned: when RV(status) is not V(read)
  type: str
  sample: "The management API at http://127.0.0.1:15672 cannot be reached: [Errno 111] Connection refused. Check …"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import (
    ApiError,
    LoginRefusedError,
    UnreachableError,
    api_arguments,
    api_from,
    objects_of,
)

FAILURES = {LoginRefusedError: "refused", UnreachableError: "unreachable"}


def main() -> None:
    """Run the module."""
    specification = {
        **api_arguments(),
        "vhost": {"type": "str"},
        "objects": {"type": "dict", "required": True},
        "allowed_failures": {"type": "list", "elements": "str", "choices": [*FAILURES.values()], "default": []},
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    try:
        found = objects_of(api_from(module.params), module.params["vhost"], module.params["objects"])
    except (ApiError, ValueError) as exc:
        status = FAILURES.get(type(exc), "")
        if status in module.params["allowed_failures"]:
            module.exit_json(changed=False, status=status, reason=str(exc))
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, status="read", objects=found)


if __name__ == "__main__":
    main()

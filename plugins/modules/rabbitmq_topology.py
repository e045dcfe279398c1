#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_topology
short_description: Declare what a RabbitMQ holds, in one pass
version_added: 0.1.0
description:
  - Compares virtual hosts, users, permissions, policies, exchanges, queues, bindings, parameters and limits with what
    the server has, and writes only what differs.
  - Reads the server once, compares in memory, and compares every field; a password is compared with the salted hash
    that the server keeps, so that a rotated one is applied.
  - What RabbitMQ cannot change in place (the type, durability or arguments of an existing queue or exchange) fails
    before anything is written, and the message says what differs.
author:
  - celeryops.hybrid contributors
extends_documentation_fragment:
  - celeryops.hybrid.rabbitmq_api
attributes:
  check_mode:
    support: full
    description: Compares and changes nothing.
  diff_mode:
    support: full
    description: Shows each object that differs, with passwords masked.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  vhosts:
    description: Virtual hosts.
    type: list
    elements: dict
    default: []
    suboptions: &named
      name:
        description: Name of the object.
        type: str
        required: true
      state: &state
        description: Whether the object shall be there.
        type: str
        choices: [present, absent]
        default: present
  users:
    description: Users.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user.
        type: str
        required: true
      password:
        description: Password. Without it an existing user keeps the one it has.
        type: str
      tags:
        description: Tags, for example V(administrator) or V(monitoring).
        type: list
        elements: str
        default: []
      state: *state
  vhost_limits:
    description: Limits of virtual hosts, for example V(max-connections).
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: &vhost
        description: Virtual host of the object.
        type: str
        required: true
      name:
        description: Name of the limit.
        type: str
        required: true
      value:
        description: The limit.
        type: int
      state: *state
  user_limits:
    description: Limits of users, for example V(max-connections).
    type: list
    elements: dict
    default: []
    suboptions:
      user:
        description: Name of the user.
        type: str
        required: true
      name:
        description: Name of the limit.
        type: str
        required: true
      value:
        description: The limit.
        type: int
      state: *state
  permissions:
    description: Permissions of users in virtual hosts, as regular expressions. What is not given is V(^$), nothing.
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: *vhost
      user: &user
        description: Name of the user.
        type: str
        required: true
      configure:
        description: What the user may declare and delete.
        type: str
        default: ^$
      write: &write
        description: What the user may publish to.
        type: str
        default: ^$
      read: &read
        description: What the user may consume from.
        type: str
        default: ^$
      state: *state
  topic_permissions:
    description: Permissions of users on the routing keys of topic exchanges.
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: *vhost
      user: *user
      exchange:
        description: Name of the exchange.
        type: str
        required: true
      write: *write
      read: *read
      state: *state
  parameters:
    description: Runtime parameters, for example of shovels.
    type: list
    elements: dict
    default: []
    suboptions:
      component:
        description: Component that the parameter belongs to.
        type: str
        required: true
      vhost: *vhost
      name:
        description: Name of the parameter.
        type: str
        required: true
      value: &value
        description: Value of the parameter.
        type: raw
      state: *state
  global_parameters:
    description: Global runtime parameters.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the parameter.
        type: str
        required: true
      value: *value
      state: *state
  policies:
    description: Policies.
    type: list
    elements: dict
    default: []
    suboptions: &policy
      vhost: *vhost
      name:
        description: Name of the policy.
        type: str
        required: true
      pattern:
        description: Regular expression of the names that the policy applies to. Needed unless O(state=absent).
        type: str
      apply_to:
        description: What the policy applies to.
        type: str
        choices: [all, exchanges, queues, classic_queues, quorum_queues, streams]
        default: all
      definition:
        description: What the policy sets.
        type: dict
        default: {}
      priority:
        description: Of the policies that match, the one with the highest priority applies.
        type: int
        default: 0
      state: *state
  operator_policies:
    description: Operator policies.
    type: list
    elements: dict
    default: []
    suboptions: *policy
  exchanges:
    description: Exchanges.
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: *vhost
      name:
        description: Name of the exchange.
        type: str
        required: true
      type:
        description: Type of the exchange.
        type: str
        default: direct
      durable: &durable
        description: Whether it survives a restart.
        type: bool
        default: true
      auto_delete: &auto_delete
        description: Whether it goes with its last user.
        type: bool
        default: false
      internal:
        description: Whether clients cannot publish to it.
        type: bool
        default: false
      arguments: &arguments
        description: Arguments, all of them.
        type: dict
        default: {}
      state: *state
  queues:
    description: Queues. One is deleted only when it is empty.
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: *vhost
      name:
        description: Name of the queue.
        type: str
        required: true
      type:
        description: Type of the queue.
        type: str
        choices: [classic, quorum, stream]
        default: classic
      durable: *durable
      auto_delete: *auto_delete
      arguments: *arguments
      state: *state
  bindings:
    description: Bindings.
    type: list
    elements: dict
    default: []
    suboptions:
      vhost: *vhost
      source:
        description: Name of the exchange that messages come from.
        type: str
        required: true
      destination:
        description: Name of the queue or exchange that they go to.
        type: str
        required: true
      destination_type:
        description: What O(bindings[].destination) is.
        type: str
        choices: [queue, exchange]
        default: queue
      routing_key:
        description: Routing key.
        type: str
        default: ''
      arguments: *arguments
      state: *state
  prune:
    description:
      - Kinds of which everything that is not declared is deleted, in the virtual hosts of O(prune_vhosts).
    type: list
    elements: str
    choices:
      - vhost_limits
      - permissions
      - topic_permissions
      - parameters
      - policies
      - operator_policies
      - exchanges
      - queues
      - bindings
    default: []
  prune_vhosts:
    description: The virtual hosts in which O(prune) works.
    type: list
    elements: str
    default: []
  protected:
    description:
      - Regular expressions of names that O(prune) never deletes. Those of RabbitMQ itself (V(amq.*)) are protected
        anyway.
    type: list
    elements: str
    default:
      - celery\.reply\..*
"""

EXAMPLES = r"""
- name: Declare the results exchange and a stream
  celeryops.hybrid.rabbitmq_topology:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    vhosts:
      - name: celery
    users:
      - name: guest
        state: absent
    permissions:
      - {vhost: celery, user: admin, configure: .*, write: .*, read: .*}
    exchanges:
      - {vhost: celery, name: celery.results, type: direct}
    queues:
      - {vhost: celery, name: celery.results.0, type: stream}
    bindings:
      - {vhost: celery, source: celery.results, destination: celery.results.0, routing_key: celery.results.0}

- name: Delete policies that nobody declared
  celeryops.hybrid.rabbitmq_topology:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    policies:
      - {vhost: celery, name: celery.results, pattern: '^celery\.results\.', definition: {max-age: 86400s}}
    prune: [policies]
    prune_vhosts: [celery]
"""

RETURN = r"""
changes:
  description: What was, or in check mode would be, written, in order.
  returned: success
  type: list
  elements: dict
  sample:
    - action: create
      object: policies vhost 'celery', name 'celery.results'
done:
  description: What had been written when the server refused the next object.
  returned: failure while writing
  type: list
  elements: str
left:
  description: What had not been written then.
  returned: failure while writing
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ApiError, api_arguments, api_from
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import (
    KINDS,
    PartlyWrittenError,
    TopologyError,
    actual,
    apply,
    declared,
    diff_of,
    differences,
)

PRUNABLE = [kind.name for kind in KINDS if "vhost" in kind.key]


def items(**options: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a list of objects."""
    state = {"type": "str", "choices": ["present", "absent"], "default": "present"}
    return {"type": "list", "elements": "dict", "default": [], "options": {**options, "state": state}}


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    name = {"type": "str", "required": True}
    nothing = {"type": "str", "default": "^$"}
    yes, no = {"type": "bool", "default": True}, {"type": "bool", "default": False}
    arguments = {"type": "dict", "default": {}}
    policy = items(
        vhost=name,
        name=name,
        pattern={"type": "str"},
        apply_to={
            "type": "str",
            "choices": ["all", "exchanges", "queues", "classic_queues", "quorum_queues", "streams"],
            "default": "all",
        },
        definition={"type": "dict", "default": {}},
        priority={"type": "int", "default": 0},
    )
    return {
        **api_arguments(),
        "vhosts": items(name=name),
        "users": items(
            name=name,
            password={"type": "str", "no_log": True},
            tags={"type": "list", "elements": "str", "default": []},
        ),
        "vhost_limits": items(vhost=name, name=name, value={"type": "int"}),
        "user_limits": items(user=name, name=name, value={"type": "int"}),
        "permissions": items(vhost=name, user=name, configure=nothing, write=nothing, read=nothing),
        "topic_permissions": items(vhost=name, user=name, exchange=name, write=nothing, read=nothing),
        "parameters": items(component=name, vhost=name, name=name, value={"type": "raw"}),
        "global_parameters": items(name=name, value={"type": "raw"}),
        "policies": policy,
        "operator_policies": policy,
        "exchanges": items(
            vhost=name,
            name=name,
            type={"type": "str", "default": "direct"},
            durable=yes,
            auto_delete=no,
            internal=no,
            arguments=arguments,
        ),
        "queues": items(
            vhost=name,
            name=name,
            type={"type": "str", "choices": ["classic", "quorum", "stream"], "default": "classic"},
            durable=yes,
            auto_delete=no,
            arguments=arguments,
        ),
        "bindings": items(
            vhost=name,
            source=name,
            destination=name,
            destination_type={"type": "str", "choices": ["queue", "exchange"], "default": "queue"},
            routing_key={"type": "str", "default": ""},
            arguments=arguments,
        ),
        "prune": {"type": "list", "elements": "str", "choices": PRUNABLE, "default": []},
        "prune_vhosts": {"type": "list", "elements": "str", "default": []},
        "protected": {"type": "list", "elements": "str", "default": [r"celery\.reply\..*"]},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    p = module.params
    try:
        api = api_from(p)
        present, absent = declared(p)
        changes = differences(
            present, absent, actual(api.get("definitions")), p["prune"], p["prune_vhosts"], p["protected"]
        )
        result = {
            "changed": bool(changes),
            "changes": [{"action": change.action, "object": change.label} for change in changes],
            "diff": diff_of(changes),
        }
        if module.check_mode:
            module.exit_json(**result)
        apply(api, changes)
    except PartlyWrittenError as exc:
        module.fail_json(
            msg=str(exc),
            changed=bool(exc.done),
            done=[change.label for change in exc.done],
            left=[change.label for change in exc.left],
        )
    except (ApiError, TopologyError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

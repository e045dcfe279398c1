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
  - What is wrong in the declaration is told before anything is written - names declared twice, bindings to missing
    exchanges, policies that match nothing, users without rights, invalid regular expressions, contradicting limits.
  - What RabbitMQ cannot change in place (the type, durability or arguments of an existing queue or exchange) fails
    before anything is written, and the message says what differs; O(recreate) recreates it without losing a message.
  - No message is deleted - queues, and virtual hosts with queues, go only when they are empty.
author:
  - celeryops.hybrid contributors (@celeryops)
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
    suboptions:
      name:
        description: Name of the virtual host.
        type: str
        required: true
      description:
        description: What it is for. When it is not given, an existing one stays; that goes for the next two as well.
        type: str
      tags:
        description: Tags.
        type: list
        elements: str
      default_queue_type:
        description: Type of queues that a client declares without one. RabbitMQ 3.10 keeps it and does not heed it.
        type: str
        choices: [classic, quorum, stream]
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
      update_password:
        description: V(on_create) sets O(users[].password) only for a user who does not exist yet.
        type: str
        choices: [always, on_create]
        default: always
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
        description: Regular expression of the names that the policy applies to. Needed unless its state is V(absent).
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
      examples:
        description:
          - Names that the pattern has to match, of objects that clients declare later. Without one, a new policy that
            matches nothing that exists or is declared is told in a warning.
        type: list
        elements: str
        default: []
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
    description:
      - Queues. One is deleted only when it is empty; a stream only when no client is connected to the virtual host as
        well, because RabbitMQ cannot tell what is in it at that moment.
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
      auto_expires:
        description: Milliseconds after which the unused queue is deleted, as the argument C(x-expires).
        type: int
      message_ttl:
        description: Milliseconds that a message stays, as C(x-message-ttl).
        type: int
      max_length:
        description: Most messages, as C(x-max-length).
        type: int
      max_priority:
        description: Highest priority, as C(x-max-priority).
        type: int
      dead_letter_exchange:
        description: Exchange that messages go to that are rejected or expire, as C(x-dead-letter-exchange).
        type: str
      dead_letter_routing_key:
        description: Their routing key, as C(x-dead-letter-routing-key).
        type: str
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
      - Kinds of which everything that is not declared is deleted; those that live in virtual hosts only in
        O(prune_vhosts). Nothing else that others made is touched.
      - V(foreign_bindings) is the bindings from and to the exchanges of O(exchanges), except those to queues that
        O(protected) names. They send copies of messages elsewhere, or bring in messages of others.
    type: list
    elements: str
    choices:
      - vhosts
      - users
      - vhost_limits
      - user_limits
      - permissions
      - topic_permissions
      - parameters
      - global_parameters
      - policies
      - operator_policies
      - exchanges
      - queues
      - bindings
      - foreign_bindings
    default: []
  prune_vhosts:
    description: The virtual hosts in which O(prune) works.
    type: list
    elements: str
    default: []
  protected:
    description:
      - Regular expressions of names that O(prune) never deletes, matched as a whole. Those of RabbitMQ itself
        (V(amq.*)) and O(username) are protected anyway.
    type: list
    elements: str
    default:
      - celery\.reply\..*
  recreate:
    description:
      - What happens to a queue or exchange that RabbitMQ cannot change in place. While it is recreated, no client may
        be connected to its virtual host, which is closed for that moment (by its limit V(max-connections)) and opened
        again. It is bound as it was.
      - V(none) fails and says what differs.
      - V(empty) recreates exchanges, and queues that are empty.
      - V(messages-kept) does so with queues that hold messages, which are moved into a queue beside it
        (C(NAME.celeryops-kept)) and back by a shovel, acknowledged when the target has confirmed them; the plugin
        C(rabbitmq_shovel) has to be enabled. Their routing key becomes the name of the queue. After a failure
        in between the next run with V(messages-kept) moves back what waits there.
      - A stream that holds messages is never recreated.
    type: str
    choices: [none, empty, messages-kept]
    default: none
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

- name: Declare a policy for queues that clients will declare
  celeryops.hybrid.rabbitmq_topology:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    policies:
      - vhost: celery
        name: orders.replies
        pattern: ^orders\.reply\.
        apply_to: queues
        definition: {expires: 600000}
        examples: [orders.reply.1]

- name: Talk to a server elsewhere, whose certificate our own CA has signed
  celeryops.hybrid.rabbitmq_topology:
    url: https://rabbitmq.example.com:15671
    ca_path: /etc/ssl/our-ca.pem
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    vhosts:
      - {name: celery, description: Results of Celery}
  delegate_to: localhost

- name: Make an existing queue a quorum queue, and keep its messages
  celeryops.hybrid.rabbitmq_topology:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    queues:
      - {vhost: celery, name: orders, type: quorum}
    recreate: messages-kept

- name: Delete policies that are not declared
  celeryops.hybrid.rabbitmq_topology:
    username: admin
    password: "{{ rabbitmq_admin_password }}"
    policies:
      - {vhost: celery, name: celery.results, pattern: '^celery\.results\.', definition: {max-age: 86400s}}
    prune: [policies]
    prune_vhosts: [celery]
"""

RETURN = r"""
differences:
  description: What was, or in check mode would be, written, in order, and what cannot be. Secrets are masked.
  returned: when the server could be read and nothing in the declaration is wrong
  type: list
  elements: dict
  contains:
    layer:
      description: V(object) always.
      type: str
    kind:
      description: Name of the option that declares such objects.
      type: str
    name:
      description: Name of the object, after its virtual host if it lives in one.
      type: str
    action:
      description: V(create), V(update), V(delete), or V(conflict) where it cannot be written.
      type: str
    actual:
      description: The object as it is, V(null) when it is missing.
      type: dict
    declared:
      description: The object as declared, V(null) when it shall not be.
      type: dict
    sentence:
      description: The difference in one line, for a conflict with the remedy.
      type: str
  sample:
    - layer: object
      kind: policies
      name: celery/celery.results
      action: update
      actual: {pattern: '^celery', apply-to: queues, definition: {max-age: 60s}, priority: 0}
      declared: {pattern: '^celery', apply-to: queues, definition: {max-age: 86400s}, priority: 0}
      sentence: "policies celery/celery.results: definition is {'max-age': '60s'}, declared is {'max-age': '86400s'}."
problems:
  description: What is wrong in the declaration. Nothing was written.
  returned: failure before writing
  type: list
  elements: str
  sample:
    - "bindings: celery/orders -> mail needs the exchange 'orders', which neither exists nor is declared. Add it to
      'exchanges', or correct the name."
done:
  description: What had been written when the server refused the next object.
  returned: failure while writing
  type: list
  elements: str
  sample: [vhosts celery, queues celery/orders]
left:
  description: What had not been written then; the first is what was refused.
  returned: failure while writing
  type: list
  elements: str
  sample: ['policies celery/orders']
"""

from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ApiError, api_arguments, api_from
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import (
    FOREIGN_BINDINGS,
    KIND,
    KINDS,
    DeclarationError,
    Prune,
    actual,
    after_writing,
    declared,
    differences,
    read,
    secret_values,
)
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology_rules import Plan, problems, remarks
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology_writing import (
    PartlyWrittenError,
    apply,
    diff_of,
    inspect,
    unfinished,
)

PRUNABLE = [*(kind.name for kind in KINDS), FOREIGN_BINDINGS]
QUEUE_TYPES = ["classic", "quorum", "stream"]


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
        examples={"type": "list", "elements": "str", "default": []},
    )
    return {
        **api_arguments(),
        "vhosts": items(
            name=name,
            description={"type": "str"},
            tags={"type": "list", "elements": "str"},
            default_queue_type={"type": "str", "choices": QUEUE_TYPES},
        ),
        "users": items(
            name=name,
            password={"type": "str", "no_log": True},
            update_password={"type": "str", "choices": ["always", "on_create"], "default": "always", "no_log": False},
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
            type={"type": "str", "choices": QUEUE_TYPES, "default": "classic"},
            auto_expires={"type": "int"},
            message_ttl={"type": "int"},
            max_length={"type": "int"},
            max_priority={"type": "int"},
            dead_letter_exchange={"type": "str"},
            dead_letter_routing_key={"type": "str", "no_log": False},
            durable=yes,
            auto_delete=no,
            arguments=arguments,
        ),
        "bindings": items(
            vhost=name,
            source=name,
            destination=name,
            destination_type={"type": "str", "choices": ["queue", "exchange"], "default": "queue"},
            routing_key={"type": "str", "default": "", "no_log": False},
            arguments=arguments,
        ),
        "prune": {"type": "list", "elements": "str", "choices": PRUNABLE, "default": []},
        "prune_vhosts": {"type": "list", "elements": "str", "default": []},
        "protected": {"type": "list", "elements": "str", "default": [r"celery\.reply\..*"]},
        "recreate": {"type": "str", "choices": ["none", "empty", "messages-kept"], "default": "none"},
    }


def examples(parameters: dict[str, Any]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Return the names that policies are for, by kind and key."""
    return {
        (kind, (policy["vhost"], policy["name"])): policy["examples"]
        for kind in ("policies", "operator_policies")
        for policy in parameters[kind]
    }


def main() -> None:
    """Run the module."""
    module = Module(argument_spec=argument_spec(), supports_check_mode=True, secrets=secret_values)
    p = module.params
    try:
        present, absent = declared(p)
        prune = Prune(p["prune"], p["prune_vhosts"], p["protected"], p["username"])
        api = api_from(p)
        definitions = read(
            api, vhost_details=any(vhost != KIND["vhosts"].fields for vhost in present["vhosts"].values())
        )
        found = actual(definitions)
        changes = differences(present, absent, found, prune)
        plan = Plan(present, after_writing(found, changes), changes, examples(p))
        if wrong := problems(plan):
            module.fail_json(msg=" ".join(wrong), problems=wrong)
        for remark in remarks(plan, definitions["rabbitmq_version"]):
            module.warn(remark)
        inspect(api, changes, p["recreate"])
        if p["recreate"] == "messages-kept":
            changes += unfinished(present, found)
        result = {
            "changed": bool(changes),
            "differences": [change.result() for change in changes],
            "diff": diff_of(changes),
        }
        if conflicts := [change.sentence() for change in changes if change.obstacle and not module.check_mode]:
            module.fail_json(**{**result, "msg": " ".join(conflicts), "changed": False})
        if not module.check_mode:
            apply(api, changes, found)
    except PartlyWrittenError as exc:
        done, left = [change.label for change in exc.done], [change.label for change in exc.left]
        module.fail_json(
            msg=f"{exc} Written before: {', '.join(done) or 'nothing'}. Not written: {', '.join(left)}.",
            **{**result, "changed": bool(done)},
            done=done,
            left=left,
        )
    except (ApiError, DeclarationError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

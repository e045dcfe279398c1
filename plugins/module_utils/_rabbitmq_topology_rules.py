# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with a declared topology, found before anything is written.

A rule yields sentences, each with the object and the remedy. What is on the server already and stays as it is may be
as it likes: an error of yesterday must not stop the repair of another object.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator

from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import MASK
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import (
    KIND,
    Key,
    Object,
    ObjectDifference,
    Topology,
)

# To recognise what was mistyped; what resembles none of these is RabbitMQ's to judge.
POLICY_KEYS = (
    *("alternate-exchange", "consumer-timeout", "dead-letter-exchange", "dead-letter-routing-key"),
    *("dead-letter-strategy", "delivery-limit", "expires", "federation-upstream", "federation-upstream-pattern"),
    *("federation-upstream-set", "ha-mode", "ha-params", "ha-promote-on-failure", "ha-promote-on-shutdown"),
    *("ha-sync-batch-size", "ha-sync-mode", "initial-cluster-size", "max-age", "max-cluster-size"),
    *("max-in-memory-bytes", "max-in-memory-length", "max-length", "max-length-bytes", "message-ttl", "overflow"),
    *("queue-leader-locator", "queue-master-locator", "queue-mode", "queue-version", "stream-filter-size-bytes"),
    *("stream-max-segment-size-bytes", "target-group-size"),
)
QUEUE_ARGUMENTS = (
    *("x-consumer-timeout", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy"),
    *("x-delivery-limit", "x-expires", "x-initial-cluster-size", "x-max-age", "x-max-in-memory-bytes"),
    *("x-max-in-memory-length", "x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-ttl", "x-overflow"),
    *("x-queue-leader-locator", "x-queue-master-locator", "x-queue-mode", "x-queue-type", "x-queue-version"),
    *("x-quorum-initial-group-size", "x-quorum-target-group-size", "x-single-active-consumer"),
    *("x-stream-filter-size-bytes", "x-stream-max-segment-size-bytes"),
)
LIMITS = {"vhost_limits": ("max-connections", "max-queues"), "user_limits": ("max-connections", "max-channels")}
# Of Perl's regular expressions, which RabbitMQ has, and Python does not.
PERL_ONLY = re.compile(r"\\[CEGHKNQRVXZhpPzg]|\[\[:|\(\?[|&RC<'>]|\(\*|[*+?}]\+")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is judged.

    Attributes:
        present: the declared topology.
        after: the topology that the changes lead to.
        changes: what is to be written.
        examples: by the key of a policy, names that it is for and that nobody has declared.
    """

    present: Topology
    after: Topology
    changes: list[ObjectDifference]
    examples: dict[tuple[str, Key], list[str]]

    def written(self, *kinds: str) -> Iterator[tuple[str, Key, Object]]:
        """Yield what is made or changed."""
        for change in self.changes:
            if change.kind.name in kinds and change.after is not None:
                yield change.kind.name, change.key, change.after

    def declared(self, *kinds: str) -> Iterator[tuple[str, Key, Object]]:
        """Yield what is declared, of all kinds if none is named."""
        for kind in kinds or self.present:
            for key, item in self.present[kind].items():
                yield kind, key, item


def problems(plan: Plan) -> list[str]:
    """Return what is wrong, one sentence each."""
    return [sentence for rule in RULES for sentence in rule(plan)]


def names(plan: Plan) -> Iterator[str]:
    """Names that RabbitMQ or its management API does not take."""
    for kind, key, item in plan.declared():
        if kind in ("exchanges", "queues") and (key[1].startswith("amq.") or not key[1]):
            yield f"{kind}: {key[1]!r} is a name of RabbitMQ's own. Choose one that does not begin with 'amq.'."
        if any(part in (".", "..") for part in key):
            yield f"{kind}: the management API cannot name {key!r}. Choose a name that is not only dots."
        if MASK in repr(item):
            yield f"{kind}: {'/'.join(key)} contains {MASK} where a secret belongs. Put the secret there."


def expressions(plan: Plan) -> Iterator[str]:
    """Invalid regular expressions."""
    for kind, key, item in plan.declared("permissions", "topic_permissions", "policies", "operator_policies"):
        for field in ("configure", "write", "read", "pattern"):
            if problem := expression_problem(item.get(field, "")):
                yield f"{kind}: '{field}' of {'/'.join(key)} is not a regular expression: {item[field]!r}: {problem}."


def expression_problem(pattern: str) -> str:
    """Return what is wrong with a regular expression, or an empty string."""
    if PERL_ONLY.search(pattern):
        return ""
    try:
        re.compile(pattern)
    except re.error as exc:
        return str(exc)
    return ""


def owners(plan: Plan) -> Iterator[str]:
    """Objects of vhosts and users that are not there."""
    for kind, key, _item in plan.declared():
        fields = dict(zip(KIND[kind].key, key, strict=True))
        for field, others in (("vhost", "vhosts"), ("user", "users")):
            if field in fields and (fields[field],) not in plan.after[others]:
                yield (
                    f"{kind}: {'/'.join(key[:4])} needs the {field} {fields[field]!r}, which neither exists nor is "
                    f"declared. Add it to '{others}', or correct the name."
                )
        if kind == "users" and plan.after["users"][key]["password"] is None:
            yield f"users: {key[0]} does not exist yet, so it needs 'password'."


def ends_of_bindings(plan: Plan) -> Iterator[str]:
    """Bindings to what is not there."""
    for _kind, key, _item in plan.declared("bindings"):
        vhost, source, place, destination = key[:4]
        for kind, name in (("exchange", source), (place, destination)):
            there = (vhost, name) in plan.after[f"{kind}s"]
            if not there and not (kind == "exchange" and name.startswith("amq.")):
                yield (
                    f"bindings: {vhost}/{source} -> {destination} needs the {kind} {name!r}, which neither exists nor "
                    f"is declared. Add it to '{kind}s', or correct the name."
                    if name
                    else f"bindings: {destination} cannot be bound to the default exchange, to which every queue is "
                    "bound by its name already. Name another exchange."
                )


def written_patterns(plan: Plan) -> Iterator[tuple[str, Key, Object, list[str]]]:
    """Yield the policies that are written and whose pattern can be tried here, with their examples."""
    for kind, key, item in plan.written("policies", "operator_policies"):
        if not PERL_ONLY.search(item["pattern"]) and not expression_problem(item["pattern"]):
            yield kind, key, item, plan.examples.get((kind, key), [])


def examples_that_do_not_match(plan: Plan) -> Iterator[str]:
    """Examples that the pattern of their policy does not match."""
    for kind, key, item, examples in written_patterns(plan):
        pattern = item["pattern"]
        for example in examples:
            if not re.search(pattern, example):
                yield f"{kind}: the pattern {pattern!r} of {'/'.join(key)} does not match its example {example!r}."


def policies_that_match_nothing(plan: Plan) -> Iterator[str]:
    """New policies without an object; clients may declare one later."""
    for kind, key, item, examples in written_patterns(plan):
        pattern = item["pattern"]
        if not examples and not any(re.search(pattern, name) for name in subjects(plan, key[0], item["apply-to"])):
            yield (
                f"{kind}: {'/'.join(key)} matches nothing: no {item['apply-to'].replace('all', 'object')} of vhost "
                f"{key[0]} that exists or is declared has a name like {pattern!r}. Correct the pattern or 'apply_to'; "
                "if it is for what clients declare later, name such an object in 'examples'."
            )


def subjects(plan: Plan, vhost: str, apply_to: str) -> Iterator[str]:
    """Yield the names that a policy can apply to."""
    if apply_to in ("all", "exchanges"):
        yield from ("amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.topic")
        yield from (name for place, name in plan.after["exchanges"] if place == vhost)
    only = {"classic_queues": "classic", "quorum_queues": "quorum", "streams": "stream"}.get(apply_to)
    for (place, name), queue in plan.after["queues"].items():
        if place == vhost and apply_to != "exchanges" and only in (None, queue["type"]):
            yield name


def users_without_rights(plan: Plan) -> Iterator[str]:
    """New users who can do nothing."""
    able = {user for _vhost, user in plan.after["permissions"]}
    touched = {key[0] for _kind, key, _item in plan.written("users")}
    touched |= {change.key[1] for change in plan.changes if change.kind.name == "permissions" and change.after is None}
    for _kind, (user,), item in plan.declared("users"):
        if user in touched and user not in able and not item["tags"]:
            yield (
                f"users: {user} would have no rights on any vhost, and no tag. Declare it in 'permissions' (an entry "
                "without expressions lets it in and no further), or leave the user out."
            )


def limits(plan: Plan) -> Iterator[str]:
    """Limits that are none, or contradict each other."""
    for kind, key, item in plan.declared("vhost_limits", "user_limits"):
        owner, name = key
        if name not in LIMITS[kind]:
            yield f"{kind}: {name!r} of {owner} is not a limit. There are {' and '.join(LIMITS[kind])}."
        elif item["value"] is None:
            yield f"{kind}: {name} of {owner} needs 'value'; -1 means unlimited."
    for _kind, (user, name), item in plan.declared("user_limits"):
        connections = (plan.after["user_limits"].get((user, "max-connections")) or {}).get("value")
        if name == "max-channels" and item["value"] is not None and 0 <= item["value"] < (connections or 0):
            yield (
                f"user_limits: {user} may have {connections} connections and {item['value']} channels, so that some "
                "connections could do nothing. Raise max-channels, or lower max-connections."
            )
    for _kind, (vhost, name), item in plan.declared("vhost_limits"):
        queues = sum(place == vhost for place, _name in plan.after["queues"])
        if name == "max-queues" and item["value"] is not None and 0 <= item["value"] < queues:
            yield (
                f"vhost_limits: {vhost} may have {item['value']} queues, and {queues} exist or are declared. Raise "
                "max-queues, or remove queues."
            )


def queue_types(plan: Plan) -> Iterator[str]:
    """Queues that cannot be what they are declared."""
    for _kind, key, item in plan.declared("queues"):
        if item["type"] != "classic" and (item["auto_delete"] or not item["durable"]):
            yield f"queues: {'/'.join(key)} is a {item['type']}, so 'durable' must be true and 'auto_delete' false."
        if item["arguments"].get("x-queue-type", item["type"]) != item["type"]:
            yield f"queues: {'/'.join(key)} has two types: 'type' and x-queue-type in 'arguments'. Remove the latter."


def policy_definitions(plan: Plan) -> Iterator[str]:
    """Policies without a definition, and mistyped names of settings."""
    for kind, key, item in plan.declared("policies", "operator_policies"):
        if not item["definition"]:
            yield f"{kind}: {'/'.join(key)} needs 'definition', and it may not be empty."
        yield from mistyped(f"{kind}: the definition of {'/'.join(key)}", item["definition"], POLICY_KEYS)
    for kind, key, item in plan.declared("queues"):
        yield from mistyped(f"{kind}: the arguments of {'/'.join(key)}", item["arguments"], QUEUE_ARGUMENTS)


def mistyped(where: str, settings: Object, known: tuple[str, ...]) -> Iterator[str]:
    """Yield the settings that resemble one of RabbitMQ's."""
    for name in set(settings) - set(known):
        for meant in difflib.get_close_matches(name, known, 1, 0.85):
            yield f"{where} has {name!r}, which RabbitMQ does not know; {meant!r} is meant."


RULES = (
    names,
    expressions,
    owners,
    ends_of_bindings,
    examples_that_do_not_match,
    users_without_rights,
    limits,
    queue_types,
    policy_definitions,
)


def remarks(plan: Plan, version: str) -> Iterator[str]:
    """Yield warnings, which stop nothing."""
    yield from policies_that_match_nothing(plan)
    for _kind, (vhost,), item in plan.declared("vhosts"):
        if item["default_queue_type"] not in (None, "classic") and version.startswith("3.10."):
            yield f"vhosts: RabbitMQ {version} keeps the default_queue_type of {vhost} and does not heed it."
    for vhost, name in plan.after["vhost_limits"]:
        if (plan.after["vhost_limits"][vhost, name]["value"], name) == (0, "max-connections"):
            yield f"vhost_limits: {vhost} lets no client in: its limit max-connections is 0."

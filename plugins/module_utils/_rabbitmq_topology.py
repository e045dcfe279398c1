# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Declared and actual topology of a RabbitMQ: read once, compared in memory, written where they differ.

Both sides are brought into one form, ``{kind: {key: object}}``; a :class:`Kind` knows how to read an object from
the server's definitions, and how to write it. The definitions are those of ``GET /api/definitions``.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import Api, ApiError

Object = dict[str, Any]
Key = tuple[str, ...]
Topology = dict[str, dict[Key, Object]]

HASHES = {"rabbit_password_hashing_sha256": hashlib.sha256, "rabbit_password_hashing_sha512": hashlib.sha512}
MASK = "VALUE_NOT_SHOWN"
# What RabbitMQ brings itself.
ALWAYS_PROTECTED = (r"amq\..*", r"")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        name: the module's option, and the key in the definitions unless it is computed.
        key: the fields that identify an object; ``vhost`` among them when it lives in one.
        fields: the other fields with their defaults, all of them compared.
        path: the path of an object in the management API.
        in_place: whether RabbitMQ can change an existing object.
    """

    name: str
    key: tuple[str, ...]
    fields: dict[str, Any]
    path: Callable[[Key], tuple[str, ...]]
    in_place: bool = True


# In the order in which they are created; they are deleted in the opposite one.
KINDS = (
    Kind("vhosts", ("name",), {}, lambda key: ("vhosts", *key)),
    Kind("users", ("name",), {"password": None, "tags": []}, lambda key: ("users", *key)),
    Kind("vhost_limits", ("vhost", "name"), {"value": None}, lambda key: ("vhost-limits", *key)),
    Kind("user_limits", ("user", "name"), {"value": None}, lambda key: ("user-limits", *key)),
    Kind(
        "permissions",
        ("vhost", "user"),
        {"configure": "^$", "write": "^$", "read": "^$"},
        lambda key: ("permissions", *key),
    ),
    Kind(
        "topic_permissions",
        ("vhost", "user", "exchange"),
        {"write": "^$", "read": "^$"},
        lambda key: ("topic-permissions", *key[:2]),
    ),
    Kind("parameters", ("component", "vhost", "name"), {"value": None}, lambda key: ("parameters", *key)),
    Kind("global_parameters", ("name",), {"value": None}, lambda key: ("global-parameters", *key)),
    Kind(
        "policies",
        ("vhost", "name"),
        {"pattern": None, "apply-to": "all", "definition": {}, "priority": 0},
        lambda key: ("policies", *key),
    ),
    Kind(
        "operator_policies",
        ("vhost", "name"),
        {"pattern": None, "apply-to": "all", "definition": {}, "priority": 0},
        lambda key: ("operator-policies", *key),
    ),
    Kind(
        "exchanges",
        ("vhost", "name"),
        {"type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}},
        lambda key: ("exchanges", *key),
        in_place=False,
    ),
    Kind(
        "queues",
        ("vhost", "name"),
        {"type": "classic", "durable": True, "auto_delete": False, "arguments": {}},
        lambda key: ("queues", *key),
        in_place=False,
    ),
    Kind(
        "bindings",
        ("vhost", "source", "destination_type", "destination", "routing_key", "arguments"),
        {"arguments": {}},
        lambda key: ("bindings", key[0], "e", key[1], key[2][0], key[3]),
        in_place=False,
    ),
)
KIND = {kind.name: kind for kind in KINDS}


class TopologyError(Exception):
    """What is declared cannot be, or could not be written; the message says what to do."""


@dataclasses.dataclass
class Difference:
    """One object that is not as declared: ``before`` or ``after`` is None where it is not, or shall not be."""

    kind: Kind
    key: Key
    before: Object | None
    after: Object | None

    @property
    def label(self) -> str:
        """What a person calls the object."""
        fields = dict(zip(self.kind.key, self.key, strict=True))
        fields.pop("arguments", None)
        return f"{self.kind.name} " + ", ".join(f"{name} {value!r}" for name, value in fields.items())

    @property
    def action(self) -> str:
        """``create``, ``update``, ``delete``, or ``conflict`` where RabbitMQ cannot change the object in place."""
        if self.before is None:
            return "create"
        if self.after is None:
            return "delete"
        return "update" if self.kind.in_place else "conflict"

    def shown(self, side: Object | None) -> Object | None:
        """Return a side as ``--diff`` may show it."""
        if side is None or side.get("password") is None:
            return side
        return {**side, "password": MASK if side is self.before else f"{MASK} (another one)"}

    def explanation(self) -> str:
        """Return, for a conflict, what differs and what to do."""
        before, after = self.before or {}, self.after or {}
        what = "; ".join(
            f"{name} is {before.get(name)!r}, declared is {after.get(name)!r}"
            for name in after
            if before.get(name) != after.get(name)
        )
        return (
            f"{self.label}: {what}. RabbitMQ cannot change this in place. Declare it as it is, or move away what it "
            "holds, delete it by hand, and run again."
        )


# --- both sides in one form ----------------------------------------------------------------------


def key_of(kind: Kind, item: Object) -> Key:
    """Return the key of an object; arguments count as their canonical text."""
    return tuple(canonical(item.get("arguments") or {}) if name == "arguments" else item[name] for name in kind.key)


def canonical(value: Any) -> str:
    """Return a text that is equal for equal values."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {canonical(value[name])}" for name in sorted(value)) + "}"
    return repr(value)


def declared(parameters: dict[str, list[Object] | None]) -> tuple[Topology, dict[str, set[Key]]]:
    """Return the declared topology, and the keys of what is declared absent.

    Raises:
        TopologyError: an object is declared twice, or a needed field is missing.
    """
    present: Topology = {kind.name: {} for kind in KINDS}
    absent: dict[str, set[Key]] = {kind.name: set() for kind in KINDS}
    for kind in KINDS:
        for item in parameters.get(kind.name) or []:
            key = key_of(kind, item)
            if key in present[kind.name] or key in absent[kind.name]:
                raise TopologyError(f"{kind.name}: {', '.join(key)} is declared twice.")
            if item.get("state", "present") == "absent":
                absent[kind.name].add(key)
                continue
            fields = {name: item.get(name.replace("-", "_")) for name in kind.fields}
            fields = {name: kind.fields[name] if value is None else value for name, value in fields.items()}
            if "pattern" in fields and fields["pattern"] is None:
                raise TopologyError(f"{kind.name}: {', '.join(key)} needs 'pattern'.")
            if "tags" in fields:
                fields["tags"] = sorted(fields["tags"])
            present[kind.name][key] = fields
    return present, absent


def actual(definitions: dict[str, Any]) -> Topology:
    """Return the topology that ``GET /api/definitions`` tells."""
    found: dict[str, list[Object]] = {kind.name: list(definitions.get(kind.name, [])) for kind in KINDS}
    found["user_limits"] = [
        {"user": user["name"], "name": name, "value": value}
        for user in definitions.get("users", [])
        for name, value in (user.get("limits") or {}).items()
    ]
    # Limits and operator policies are runtime parameters to the server, but have paths of their own.
    for item in definitions.get("parameters", []):
        if item["component"] == "vhost-limits":
            found["vhost_limits"] += [
                {"vhost": item["vhost"], "name": name, "value": value} for name, value in item["value"].items()
            ]
        elif item["component"] == "operator_policy":
            found["operator_policies"].append({"vhost": item["vhost"], "name": item["name"], **item["value"]})
    found["parameters"] = [
        item for item in found["parameters"] if item["component"] not in ("vhost-limits", "operator_policy")
    ]
    return {kind.name: {key_of(kind, item): fields_of(kind, item) for item in found[kind.name]} for kind in KINDS}


def fields_of(kind: Kind, item: Object) -> Object:
    """Return the compared fields of an object as the server tells it."""
    fields = {name: item.get(name, default) for name, default in kind.fields.items()}
    if kind.name == "queues":
        arguments = dict(fields["arguments"])
        fields["type"] = arguments.pop("x-queue-type", "classic")
        fields["arguments"] = arguments
    if kind.name == "users":
        tags = fields["tags"]
        # Before RabbitMQ 3.9 a text.
        fields["tags"] = sorted(tags.split(",") if isinstance(tags, str) and tags else tags or [])
        fields["password"] = (item.get("password_hash", ""), item.get("hashing_algorithm", ""))
    return fields


# --- passwords -----------------------------------------------------------------------------------


def password_matches(password: str, stored: tuple[str, str]) -> bool:
    """Tell whether a password is the one whose salted hash the server keeps.

    The hash is base64 of a salt of four bytes and the digest of salt and password:
    https://www.rabbitmq.com/docs/passwords#computing-password-hash
    """
    encoded, algorithm = stored
    digest = HASHES.get(algorithm)
    if digest is None or not encoded:
        return False
    raw = base64.b64decode(encoded)
    return digest(raw[:4] + password.encode()).digest() == raw[4:]


def password_hash(password: str) -> str:
    """Return a salted SHA-256 hash, so that the password itself is not sent."""
    salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


# --- differences ---------------------------------------------------------------------------------


def differences(
    present: Topology,
    absent: dict[str, set[Key]],
    found: Topology,
    prune: Iterable[str] = (),
    prune_vhosts: Iterable[str] = (),
    protected: Iterable[str] = (),
) -> list[Difference]:
    """Return what differs, in the order in which it is written: first what goes, then what comes."""
    gone: list[Difference] = []
    come: list[Difference] = []
    guard = re.compile("|".join(f"(?:{pattern})" for pattern in [*ALWAYS_PROTECTED, *protected]))
    for kind in KINDS:
        before, after = found[kind.name], present[kind.name]
        doomed = absent[kind.name] & set(before)
        if kind.name in prune:
            doomed |= set(prunable(kind, before, after, set(prune_vhosts), guard))
        gone += [Difference(kind, key, before[key], None) for key in sorted(doomed)]
        for key, wanted in after.items():
            if key not in before:
                come.append(Difference(kind, key, None, wanted))
            elif not equal(kind, before[key], wanted):
                come.append(Difference(kind, key, before[key], wanted))
    return gone[::-1] + come


def equal(kind: Kind, before: Object, after: Object) -> bool:
    """Tell whether an object is as declared; a password that is not declared is not compared."""
    if kind.name == "users":
        same = after["password"] is None or password_matches(after["password"], before["password"])
        return same and before["tags"] == after["tags"]
    return before == after


def prunable(
    kind: Kind, before: dict[Key, Object], after: dict[Key, Object], vhosts: set[str], guard: re.Pattern[str]
) -> Iterator[Key]:
    """Yield the keys that nobody declared and nobody protected, inside the vhosts that were named."""
    for key in before.keys() - after.keys():
        fields = dict(zip(kind.key, key, strict=True))
        names = [fields[name] for name in ("name", "user", "source", "destination") if name in fields]
        if fields.get("vhost") in vhosts and not any(guard.fullmatch(name) for name in names):
            yield key


# --- writing -------------------------------------------------------------------------------------


def write(api: Api, difference: Difference) -> None:
    """Write one difference."""
    kind, key = difference.kind, difference.key
    if difference.after is None:
        delete(api, difference)
    elif kind.name == "bindings":
        api.send("POST", *kind.path(key), body={"routing_key": key[4], **difference.after})
    else:
        api.send("PUT", *kind.path(key), body=body_of(kind, key, difference.after, difference.before))


def body_of(kind: Kind, key: Key, fields: Object, before: Object | None) -> Object:
    """Return what the management API takes for an object."""
    if kind.name == "queues":
        return {
            **{name: value for name, value in fields.items() if name != "type"},
            "arguments": {**fields["arguments"], "x-queue-type": fields["type"]},
        }
    if kind.name == "users":
        body: Object = {"tags": ",".join(fields["tags"])}
        if fields["password"] is not None:
            body["password_hash"] = password_hash(fields["password"])
        elif before is not None:
            body["password_hash"], body["hashing_algorithm"] = before["password"]
        else:
            raise TopologyError(f"users: {key[0]} does not exist yet, so it needs 'password'.")
        return body
    if kind.name == "topic_permissions":
        return {"exchange": key[2], **fields}
    if kind.name in ("parameters", "global_parameters"):
        return {**dict(zip(kind.key, key, strict=True)), **fields}
    return fields


def delete(api: Api, difference: Difference) -> None:
    """Delete one object; a queue only when it is empty, because nothing may be lost by the way."""
    kind, key = difference.kind, difference.key
    path = kind.path(key)
    if kind.name == "bindings":
        for binding in api.get(*path):
            if binding["routing_key"] == key[4] and canonical(binding["arguments"]) == key[5]:
                api.send("DELETE", *path, binding["properties_key"])
    else:
        api.send("DELETE", *path, query="?if-empty=true" if kind.name == "queues" else "")


class PartlyWrittenError(Exception):
    """Not all could be written; the arguments are what was done, and what was left."""

    def __init__(self, reason: str, done: list[Difference], left: list[Difference]) -> None:
        super().__init__(reason)
        self.done = done
        self.left = left


def apply(api: Api, changes: list[Difference]) -> None:
    """Write the differences in order.

    Raises:
        TopologyError: an object cannot be changed in place; nothing was written.
        PartlyWrittenError: the server refused one; the earlier ones were written.
    """
    conflicts = [difference.explanation() for difference in changes if difference.action == "conflict"]
    if conflicts:
        raise TopologyError(" ".join(conflicts))
    for number, difference in enumerate(changes):
        try:
            write(api, difference)
        except (ApiError, TopologyError) as exc:
            raise PartlyWrittenError(f"{difference.label}: {exc}", changes[:number], changes[number:]) from exc


def diff_of(changes: list[Difference]) -> dict[str, dict[str, Object]]:
    """Return the two sides as ``--diff`` shows them, with secrets masked."""
    return {
        "before": {d.label: d.shown(d.before) for d in changes if d.before is not None},
        "after": {d.label: d.shown(d.after) for d in changes if d.after is not None},
    }

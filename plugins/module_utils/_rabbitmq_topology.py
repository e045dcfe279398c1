# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Declared and actual topology of a RabbitMQ, read once and compared in memory.

Both sides are brought into one form, ``{kind: {key: object}}``; a :class:`Kind` knows how to read an object from
the server's definitions, and where to write it. The definitions are those of ``GET /api/definitions``.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import MASK, masked, secrets_in
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import Api

Object = dict[str, Any]
Key = tuple[str, ...]
Topology = dict[str, dict[Key, Object]]

# The global parameter that holds the number of archive streams of a vhost, whose name follows.
PARTITIONS_PARAMETER = "celery.results.partitions."
HASHES = {"rabbit_password_hashing_sha256": hashlib.sha256, "rabbit_password_hashing_sha512": hashlib.sha512}
CANNOT_CHANGE = (
    "RabbitMQ cannot change this in place. Declare it as it is, or set 'recreate', or move away what it holds, "
    "delete it by hand, and run again."
)
# A vhost of which nothing was ever declared.
VHOST: Object = {"description": "", "tags": [], "default_queue_type": "classic"}
# Arguments of queues that have options of their own, named as in community.rabbitmq.
QUEUE_OPTIONS = {
    "auto_expires": "x-expires",
    "dead_letter_exchange": "x-dead-letter-exchange",
    "dead_letter_routing_key": "x-dead-letter-routing-key",
    "max_length": "x-max-length",
    "max_priority": "x-max-priority",
    "message_ttl": "x-message-ttl",
}
# Fields of keys that may be left out.
DEFAULT_KEYS: Object = {"destination_type": "queue", "routing_key": ""}
# What RabbitMQ brings itself.
ALWAYS_PROTECTED = (r"amq\..*", r"")
OWN_PARAMETERS = ("cluster_name", "cluster_tags", "imported_definition_hash_value", "internal_cluster_id", "node_tags")


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
    # What is not declared of a vhost stays as it is.
    Kind(
        "vhosts",
        ("name",),
        {"description": None, "tags": None, "default_queue_type": None},
        lambda key: ("vhosts", *key),
    ),
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
# What may be pruned beside the kinds.
FOREIGN_BINDINGS = "foreign_bindings"


class DeclarationError(Exception):
    """What is declared cannot be, or could not be written; the message says what to do."""


@dataclasses.dataclass
class ObjectDifference:
    """One object that is not as declared.

    Attributes:
        before: the object as it is, None where it is not.
        after: the object as declared, None where it shall not be.
        obstacle: why it is not written, as a sentence with the remedy.
        recreate: delete it and create it again, because RabbitMQ cannot change it in place.
    """

    kind: Kind
    key: Key
    before: Object | None
    after: Object | None
    obstacle: str = ""
    recreate: bool = False

    @property
    def fields(self) -> dict[str, str]:
        """What identifies the object, by name."""
        return dict(zip(self.kind.key, self.key, strict=True))

    @property
    def name(self) -> str:
        """What a person calls the object among those of its kind."""
        if self.kind.name == "bindings":
            vhost, source, _type, destination, routing_key, _properties = self.key
            return f"{vhost}/{source} -> {destination} [{routing_key}]"
        return "/".join(self.key)

    @property
    def label(self) -> str:
        """What a person calls the object."""
        return f"{self.kind.name} {self.name}"

    @property
    def action(self) -> str:
        """``create``, ``update``, ``delete``, or ``conflict`` where it cannot be written."""
        if self.obstacle:
            return "conflict"
        if self.before is None:
            return "create"
        if self.after is None:
            return "delete"
        return "update"

    def shown(self, side: Object | None) -> Object | None:
        """Return a side as people may see it."""
        if side is None:
            return None
        shown: Object = masked({name: value for name, value in side.items() if name != "password"}, fields=True)
        if side.get("password") is not None:
            kept = self.before is None or side["password"] == self.before["password"]
            shown["password"] = MASK if kept else f"{MASK} (another one)"
        return shown

    def changes(self) -> str:
        """Return what differs, field by field."""
        before, after = self.shown(self.before) or {}, self.shown(self.after) or {}
        return "; ".join(
            f"{name} is {before.get(name)!r}, declared is {after.get(name)!r}"
            for name in after
            if before.get(name) != after.get(name)
        )

    def sentence(self) -> str:
        """Return the difference in one line."""
        if self.obstacle:
            return " ".join(part for part in (f"{self.label}: {self.changes()}.", self.obstacle) if part)
        if self.before is None:
            return f"{self.label} is missing."
        if self.after is None:
            return f"{self.label} is there and shall not be."
        return f"{self.label}: {self.changes()}.{' It is empty and is recreated.' if self.recreate else ''}"

    def result(self) -> Object:
        """Return the difference as modules do."""
        return {
            "layer": "object",
            "kind": self.kind.name,
            "name": self.name,
            "action": self.action,
            "actual": self.shown(self.before),
            "declared": self.shown(self.after),
            "sentence": self.sentence(),
        }


def secret_values(parameters: dict[str, Any]) -> list[str]:
    """Return the secrets in the runtime parameters that a module was given."""
    items = [*(parameters.get("parameters") or ()), *(parameters.get("global_parameters") or ())]
    return [secret for item in items for secret in secrets_in(item.get("value"))]


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
        DeclarationError: an object is declared twice, or a needed field is missing.
    """
    present: Topology = {kind.name: {} for kind in KINDS}
    absent: dict[str, set[Key]] = {kind.name: set() for kind in KINDS}
    for kind in KINDS:
        for item in parameters.get(kind.name) or []:
            key = key_of(kind, item)
            if key in present[kind.name] or key in absent[kind.name]:
                raise DeclarationError(f"{kind.name}: {', '.join(key)} is declared twice.")
            if item.get("state", "present") == "absent":
                absent[kind.name].add(key)
                continue
            fields = {name: item.get(name.replace("-", "_")) for name in kind.fields}
            fields = {name: kind.fields[name] if value is None else value for name, value in fields.items()}
            if "pattern" in fields and fields["pattern"] is None:
                raise DeclarationError(f"{kind.name}: {', '.join(key)} needs 'pattern'.")
            if kind.name == "queues":
                fields["arguments"] = queue_arguments(item)
            if item.get("update_password") == "on_create" and fields.get("password") is not None:
                fields["password"] = OnlyNew(fields["password"])
            if "value" in fields:
                fields["value"] = as_stored(fields["value"])
            if fields.get("tags") is not None:
                fields["tags"] = sorted(fields["tags"])
            present[kind.name][key] = fields
    return present, absent


class OnlyNew(str):
    """A password for a user who does not exist yet; another one keeps what it has."""

    __slots__ = ()


def queue_arguments(item: Object) -> Object:
    """Return the arguments of a declared queue, with those that have options of their own.

    Raises:
        DeclarationError: one is declared in both ways.
    """
    arguments = dict(item.get("arguments") or {})
    for option, argument in QUEUE_OPTIONS.items():
        if item.get(option) is None:
            continue
        if argument in arguments:
            raise DeclarationError(
                f"queues: {item['vhost']}/{item['name']} has both {option!r} and {argument}. Remove one."
            )
        arguments[argument] = item[option]
    return arguments


def read(api: Api, vhost_details: bool) -> dict[str, Any]:
    """Return the server's definitions; those of RabbitMQ 3.10 only name the vhosts, so details are read beside them."""
    definitions = api.get("definitions")
    if vhost_details and any("metadata" not in vhost for vhost in definitions["vhosts"]):
        definitions["vhosts"] = api.get("vhosts")
    return definitions


def actual(definitions: dict[str, Any]) -> Topology:
    """Return the topology that ``GET /api/definitions`` tells, without what RabbitMQ keeps for itself."""
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
                {"vhost": item["vhost"], "name": name, "value": value} for name, value in (item["value"] or {}).items()
            ]
        elif item["component"] == "operator_policy":
            found["operator_policies"].append({"vhost": item["vhost"], "name": item["name"], **item["value"]})
    found["parameters"] = [
        item for item in found["parameters"] if item["component"] not in ("vhost-limits", "operator_policy")
    ]
    found["global_parameters"] = [item for item in found["global_parameters"] if item["name"] not in OWN_PARAMETERS]
    return {kind.name: {key_of(kind, item): fields_of(kind, item) for item in found[kind.name]} for kind in KINDS}


def fields_of(kind: Kind, item: Object) -> Object:
    """Return the compared fields of an object as the server tells it."""
    fields = {name: item.get(name, default) for name, default in kind.fields.items()}
    if kind.name == "vhosts":
        metadata = {**item, **(item.get("metadata") or {})}
        queue_type = metadata.get("default_queue_type")
        fields = {
            "description": metadata.get("description", VHOST["description"]),
            "tags": sorted(metadata.get("tags") or VHOST["tags"]),
            "default_queue_type": VHOST["default_queue_type"] if queue_type in (None, "undefined") else queue_type,
        }
    if kind.name == "queues":
        arguments = dict(fields["arguments"] or {})
        fields["type"] = arguments.pop("x-queue-type", "classic")
        fields["arguments"] = arguments
    if kind.name == "users":
        tags = fields["tags"]
        # Before RabbitMQ 3.9 a text.
        fields["tags"] = sorted(tags.split(",") if isinstance(tags, str) and tags else tags or [])
        fields["password"] = (item.get("password_hash", ""), item.get("hashing_algorithm", ""))
    return fields


def declaration(found: Topology, vhosts: Iterable[str] | None, defaults: bool) -> dict[str, list[Object]]:
    """Return a topology as the options of the module take it, without secrets.

    Args:
        found: the topology.
        vhosts: whose objects are returned, None for all. What lives in no vhost is always returned.
        defaults: whether fields are returned that have their default.
    """
    result: dict[str, list[Object]] = {}
    for kind in KINDS:
        for key, item in sorted(found[kind.name].items()):
            fields = {name: value for name, value in zip(kind.key, key, strict=True) if name != "arguments"}
            vhost = fields["name"] if kind.name == "vhosts" else fields.get("vhost")
            if vhosts is not None and vhost is not None and vhost not in vhosts:
                continue
            usual = VHOST if kind.name == "vhosts" else kind.fields
            shown = masked({name: value for name, value in item.items() if name != "password"}, fields=True)
            for name, value in shown.items():
                if defaults or value != usual[name]:
                    fields[name.replace("-", "_")] = value
            result.setdefault(kind.name, []).append(fields)
    return result


def as_stored(value: Any) -> Any:
    """Return a value as the server tells it: to Erlang an empty dictionary is an empty list."""
    if isinstance(value, dict) and value:
        return {name: as_stored(item) for name, item in value.items()}
    return [as_stored(item) for item in value] if isinstance(value, (list, dict)) else value


# --- passwords -----------------------------------------------------------------------------------


def password_matches(password: str, stored: tuple[str, str]) -> bool:
    """Return whether a password is the one whose salted hash the server keeps.

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


@dataclasses.dataclass(frozen=True)
class Prune:
    """What else is deleted.

    Attributes:
        kinds: of which everything goes that nobody declared; :data:`FOREIGN_BINDINGS` is the bindings from and to
            exchanges that are declared.
        vhosts: in which, as far as the kind lives in vhosts.
        protected: regular expressions of names that stay.
        username: who asks, and stays as well.

    Raises:
        DeclarationError: it cannot be meant.
    """

    kinds: Sequence[str] = ()
    vhosts: Sequence[str] = ()
    protected: Sequence[str] = ()
    username: str = ""

    def __post_init__(self) -> None:
        for pattern in self.protected:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise DeclarationError(f"protected: {pattern!r} is not a regular expression: {exc}.") from exc
        if not self.vhosts and (
            homeless := [kind for kind in self.kinds if "vhost" in KIND.get(kind, KIND["bindings"]).key]
        ):
            raise DeclarationError(
                f"prune: 'prune_vhosts' is empty, so {', '.join(homeless)} would be deleted nowhere. Name some vhosts."
            )

    def doomed(
        self, kind: Kind, before: Iterable[Key], after: Iterable[Key], exchanges: Container[Key] = ()
    ) -> Iterator[Key]:
        """Yield the keys that nobody declared and nobody protected; *exchanges* are those that are declared."""
        for key in set(before) - set(after):
            fields = dict(zip(kind.key, key, strict=True))
            if fields.get("vhost") in (*self.vhosts, None) and self._goes(kind, fields, exchanges):
                yield key

    def _goes(self, kind: Kind, fields: dict[str, str], exchanges: Container[Key]) -> bool:
        patterns = [*ALWAYS_PROTECTED, re.escape(self.username), *self.protected]
        guard = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
        if kind.name in self.kinds:
            names = [fields[name] for name in ("name", "user", "source", "destination") if name in fields]
            return not any(guard.fullmatch(name) for name in names)
        if kind.name != "bindings" or FOREIGN_BINDINGS not in self.kinds or not fields["source"]:
            return False
        to_queue = fields["destination_type"] == "queue"
        ends = [fields["source"], *([] if to_queue else [fields["destination"]])]
        # A queue may have a name that is protected; an exchange of such a name could lead messages elsewhere.
        kept = to_queue and guard.fullmatch(fields["destination"])
        return not kept and any((fields["vhost"], name) in exchanges for name in ends)


def differences(
    present: Topology, absent: dict[str, set[Key]], found: Topology, prune: Prune = Prune()
) -> list[ObjectDifference]:
    """Return what differs, in the order in which it is written: first what goes, then what comes."""
    gone: list[ObjectDifference] = []
    come: list[ObjectDifference] = []
    for kind in KINDS:
        before, after = found[kind.name], present[kind.name]
        doomed = absent[kind.name] & set(before) | set(prune.doomed(kind, before, after, present["exchanges"]))
        gone += [ObjectDifference(kind, key, before[key], None) for key in sorted(doomed)]
        for key, wanted in after.items():
            existing = before.get(key)
            difference = ObjectDifference(kind, key, existing, settled(kind, existing, wanted))
            if existing is not None and not kind.in_place:
                difference.obstacle = CANNOT_CHANGE
            if difference.before != difference.after:
                come.append(difference)
    return gone[::-1] + come


def of_others(definitions: dict[str, Any], options: dict[str, list[Object]], vhost: str, prune: Prune) -> list[str]:
    """Return what others have declared on a server, and a first run would delete.

    Args:
        definitions: those of the server.
        options: the declared topology, as the module takes it.
        vhost: of the deployment. A server on which an earlier run has left its mark has nothing of others.
        prune: what is deleted besides what is declared absent.
    """
    if any(item["name"] == PARTITIONS_PARAMETER + vhost for item in definitions.get("global_parameters", [])):
        return []
    wanted = {kind: [{**DEFAULT_KEYS, **item} for item in items] for kind, items in options.items()}
    doomed = [change for change in differences(*declared(wanted), actual(definitions), prune) if change.after is None]
    # Every RabbitMQ comes with this user.
    return [change.label for change in doomed if change.fields.get("name") != "guest"]


def settled(kind: Kind, before: Object | None, wanted: Object) -> Object:
    """Return an object as it shall be: what is declared, and what stays because it is not declared or the same."""
    if kind.name == "vhosts":
        return {name: (before or {}).get(name) if value is None else value for name, value in wanted.items()}
    if kind.name == "users" and before is not None:
        password = wanted["password"]
        if password is None or isinstance(password, OnlyNew) or password_matches(password, before["password"]):
            return {**wanted, "password": before["password"]}
    return wanted


def after_writing(found: Topology, changes: Iterable[ObjectDifference]) -> Topology:
    """Return the topology that the changes lead to; what lived in a vhost, or was a user's, goes with it."""
    result = {name: dict(objects) for name, objects in found.items()}
    for change in changes:
        if change.after is None:
            result[change.kind.name].pop(change.key, None)
        else:
            result[change.kind.name][change.key] = change.after
    for kind in KINDS:
        for owner, owners in (("vhost", "vhosts"), ("user", "users")):
            if owner in kind.key:
                place = kind.key.index(owner)
                objects = result[kind.name]
                result[kind.name] = {key: item for key, item in objects.items() if (key[place],) in result[owners]}
    return result

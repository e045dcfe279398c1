# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared state of a RabbitMQ node: rendered to files, and compared with the definitions that it exports.

A topology is plain data, shaped like RabbitMQ's own definitions: lists of vhosts, users (with a clear ``password``),
permissions, policies, exchanges, queues, bindings and global_parameters. Where many objects differ only in their
name, ``names`` stands for ``name`` (and ``destinations`` for ``destination``, the routing key being the name).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import typing as t

Item = dict[str, t.Any]

HASHING = "rabbit_password_hashing_sha256"
PARTITIONS_PARAMETER = "celery.results.partitions."

_STREAM = re.compile(r"^celery\.results\.(\d+)$")
_KEY = re.compile(r"^[A-Za-z0-9_.$-]+$")
_LARGE = 20

# Numbers that Jinja may have turned into strings on their way here.
_INTEGERS = frozenset(
    {
        "delivery-limit",
        "expires",
        "max-length",
        "max-length-bytes",
        "message-ttl",
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-message-ttl",
        "x-stream-max-segment-size-bytes",
    }
)


def _value(name: str, value: t.Any) -> str:
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if not _KEY.match(name):
        raise ValueError(f"{name!r} is no key of rabbitmq.conf")
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise ValueError(f"the value of {name} is empty or contains a line break")
    return f"{name} = {text}"


def render_config(settings: t.Iterable[t.Mapping[str, t.Any]]) -> str:
    """Return the lines of a rabbitmq.conf, each setting below the comment that gives its reason.

    A list becomes numbered keys (``listeners.tcp.1``), a dictionary a key for each of its own.
    """
    lines: list[str] = []
    for setting in settings:
        name, value = str(setting["name"]), setting["value"]
        if setting.get("why"):
            lines += ["", *(f"# {line}".rstrip() for line in str(setting["why"]).strip().splitlines())]
        if isinstance(value, t.Mapping):
            lines += [_value(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            lines += [_value(f"{name}.{number}", item) for number, item in enumerate(value, 1)]
        else:
            lines.append(_value(name, value))
    return "\n".join(lines).lstrip("\n") + "\n"


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Return *password* as RabbitMQ stores it: four random bytes and the SHA-256 digest of these and the password."""
    salt = os.urandom(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def password_matches(password: str, stored: t.Any) -> bool:
    """Tell whether *stored*, salt and digest in base64, is the hash of *password*."""
    try:
        raw = base64.b64decode(str(stored), validate=True)
    except ValueError:
        return False
    return len(raw) == 36 and hmac.compare_digest(raw, base64.b64decode(hash_password(password, raw[:4])))


def _typed(values: t.Mapping[str, t.Any] | None) -> Item:
    return {
        key: int(value) if key in _INTEGERS and str(value).lstrip("-").isdigit() else value
        for key, value in (values or {}).items()
    }


def _tags(value: t.Any) -> list[str]:
    tags = value.split(",") if isinstance(value, str) else value or []
    return sorted(str(tag).strip() for tag in tags if str(tag).strip())


def _expand(items: t.Iterable[Item], several: str, one: str) -> list[Item]:
    expanded = []
    for item in items:
        if several in item:
            rest = {key: value for key, value in item.items() if key != several}
            expanded += [{**rest, one: name} for name in item[several]]
        else:
            expanded.append(dict(item))
    return expanded


def expand(topology: t.Mapping[str, t.Any]) -> dict[str, list[Item]]:
    """Return *topology* with an entry for each object, and every value that RabbitMQ would fill in."""
    wanted: dict[str, list[Item]] = {
        "vhosts": [dict(item) for item in topology.get("vhosts", [])],
        "users": [{**item, "tags": _tags(item.get("tags"))} for item in topology.get("users", [])],
        "permissions": [dict(item) for item in topology.get("permissions", [])],
        "global_parameters": [dict(item) for item in topology.get("global_parameters", [])],
        "policies": [
            {"priority": 0, "apply-to": "queues", **item, "definition": _typed(item["definition"])}
            for item in topology.get("policies", [])
        ],
        "exchanges": [
            {
                "durable": True,
                "auto_delete": False,
                "internal": False,
                **item,
                "arguments": _typed(item.get("arguments")),
            }
            for item in topology.get("exchanges", [])
        ],
        "queues": [
            {"durable": True, "auto_delete": False, **item, "arguments": _typed(item.get("arguments"))}
            for item in _expand(topology.get("queues", []), "names", "name")
        ],
        "bindings": [
            {
                "destination_type": "queue",
                "routing_key": item["destination"],
                **item,
                "arguments": _typed(item.get("arguments")),
            }
            for item in _expand(topology.get("bindings", []), "destinations", "destination")
        ],
    }
    return wanted


_KEYS: dict[str, tuple[str, ...]] = {
    "vhosts": ("name",),
    "users": ("name",),
    "permissions": ("vhost", "user"),
    "global_parameters": ("name",),
    "policies": ("vhost", "name"),
    "exchanges": ("vhost", "name"),
    "queues": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination", "destination_type", "routing_key", "arguments"),
}
_WORDS = {
    "vhosts": "vhost {name}",
    "users": "user {name}",
    "permissions": "permission of user {user} in vhost {vhost}",
    "global_parameters": "global parameter {name}",
    "policies": "policy {name} in vhost {vhost}",
    "exchanges": "exchange {name} in vhost {vhost}",
    "queues": "queue {name} in vhost {vhost}",
    "bindings": "binding of {destination} to {source} with '{routing_key}' in vhost {vhost}",
}
# RabbitMQ cannot change these in place.
_FIXED = ("exchanges", "queues")


def _key(kind: str, item: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    return tuple(json.dumps(item.get(part) or {}, sort_keys=True) for part in _KEYS[kind])


def _compared(kind: str, item: Item) -> Item:
    compared = {key: value for key, value in item.items() if key not in _KEYS[kind]}
    if kind == "queues":
        # RabbitMQ 4 exports the type of a classic queue, 3.10 does not; both take it as the default.
        compared["arguments"] = {
            key: value
            for key, value in (compared.get("arguments") or {}).items()
            if (key, value) != ("x-queue-type", "classic")
        }
        compared.pop("type", None)
    return compared


def _changed_fields(kind: str, wanted: Item, running: Item) -> list[str]:
    """Return what differs, in words; never a password."""
    if kind == "users":
        fields = [] if password_matches(wanted["password"], running.get("password_hash")) else ["another password"]
        tags = _tags(running.get("tags"))
        return fields + ([] if tags == wanted["tags"] else [f"tags {tags} -> {wanted['tags']}"])
    before, after = _compared(kind, running), _compared(kind, wanted)
    return [
        f"{field} {_shown(before.get(field))} -> {_shown(value)}"
        for field, value in after.items()
        if before.get(field) != value
    ]


def _shown(value: t.Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _sentences(kind: str, items: list[Item]) -> list[str]:
    if len(items) > _LARGE or (kind in ("queues", "bindings") and len(items) > 3):
        first, last = (_WORDS[kind].format(**item) for item in (items[0], items[-1]))
        return [f"{len(items)} {kind} are missing, from {first} to {last}"]
    return [f"{_WORDS[kind].format(**item)} is missing" for item in items]


def _exported(kind: str, item: Item) -> Item:
    if kind == "users":
        return {
            "name": item["name"],
            "password_hash": hash_password(item["password"]),
            "hashing_algorithm": HASHING,
            "tags": ",".join(item["tags"]),
        }
    return item


def difference(topology: t.Mapping[str, t.Any], definitions: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Compare *topology* with what a node exported.

    Returns *payload*, the definitions to import (empty when nothing differs), *sentences* that say what would change,
    and *conflicts*: objects that exist in another form, which RabbitMQ cannot change in place. What is not declared
    is not looked at.
    """
    payload: dict[str, list[Item]] = {}
    sentences: list[str] = []
    conflicts: list[str] = []
    for kind, items in expand(topology).items():
        running = {_key(kind, item): item for item in definitions.get(kind) or []}
        missing = []
        for item in items:
            present = running.get(_key(kind, item))
            if present is None:
                missing.append(item)
                continue
            fields = _changed_fields(kind, item, present)
            if not fields:
                continue
            words = _WORDS[kind].format(**item)
            if kind in _FIXED:
                conflicts.append(f"{words} exists with other properties: {'; '.join(fields)}")
                continue
            sentences.append(f"{words}: {'; '.join(fields)}")
            payload.setdefault(kind, []).append(_exported(kind, item))
        if missing:
            sentences += _sentences(kind, missing)
            payload.setdefault(kind, []).extend(_exported(kind, item) for item in missing)
    return {"payload": payload, "sentences": sentences, "conflicts": conflicts}


def partitions_problem(definitions: t.Mapping[str, t.Any], vhost: str, partitions: t.Any) -> str:
    """Return why the number of archive streams cannot become *partitions*, or an empty string.

    The partition of a task id is a checksum modulo this number, so that with another one results are looked for in
    the wrong stream. The number is kept in a global parameter, so that a deleted stream is not taken for a change.
    """
    count = int(partitions)
    numbers = {
        int(match.group(1))
        for queue in definitions.get("queues") or []
        if queue.get("vhost") == vhost and (match := _STREAM.match(str(queue.get("name"))))
    }
    if not numbers:
        return ""
    recorded = [
        parameter.get("value")
        for parameter in definitions.get("global_parameters") or []
        if parameter.get("name") == PARTITIONS_PARAMETER + vhost
    ]
    present = int(recorded[0]) if recorded and str(recorded[0]).isdigit() else max(numbers) + 1
    return "" if present == count else f"holds {present} archive streams in vhost {vhost}, declared are {count}"

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The differences of a topology, written one after the other, so that no message is lost by the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import Api, ApiError
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import (
    KIND,
    DeclarationError,
    Key,
    Kind,
    Object,
    ObjectDifference,
    Topology,
    canonical,
    password_hash,
)

KEPT = ".celeryops-kept"
SHOVEL = "celeryops-recreate"
SENT_HASH = "rabbit_password_hashing_sha256"
# Counts of messages in quorum queues and streams are so old at most, in seconds: they come with the statistics.
STALE = 15.0
# A shovel that has moved nothing for so long, in seconds, does not work.
PATIENCE = 60.0
NOT_EMPTY = "It holds {messages} and is deleted only when it is empty: consume or purge them, and run again."
NEEDS_SHOVEL = "Messages are moved safely only by a shovel: enable the plugin rabbitmq_shovel, and run again."
# Policies that would drop messages while they wait.
DROPPING = ("message-ttl", "expires", "max-length", "max-length-bytes")


def write(api: Api, difference: ObjectDifference) -> None:
    """Write one difference."""
    kind, key = difference.kind, difference.key
    if difference.after is None:
        delete(api, difference)
    elif kind.name == "bindings":
        api.send("POST", *kind.path(key), body={"routing_key": key[4], **difference.after})
    else:
        api.send("PUT", *kind.path(key), body=body_of(kind, key, difference.after))


def body_of(kind: Kind, key: Key, fields: Object) -> Object:
    """Return what the management API takes for an object."""
    if kind.name == "vhosts":
        body = {name: value for name, value in fields.items() if value is not None}
        return {**body, "tags": ",".join(body["tags"])} if "tags" in body else body
    if kind.name == "queues":
        return {
            **{name: value for name, value in fields.items() if name != "type"},
            "arguments": {**fields["arguments"], "x-queue-type": fields["type"]},
        }
    if kind.name == "users":
        password = fields["password"]
        stored = (password_hash(password), SENT_HASH) if isinstance(password, str) else password
        return {
            "tags": ",".join(fields["tags"]),
            **dict(zip(("password_hash", "hashing_algorithm"), stored, strict=True)),
        }
    if kind.name == "topic_permissions":
        return {"exchange": key[2], **fields}
    if kind.name in ("parameters", "global_parameters"):
        return {**dict(zip(kind.key, key, strict=True)), **fields}
    return fields


def delete(api: Api, difference: ObjectDifference) -> None:
    """Delete one object; a queue only when it is empty, because nothing may be lost by the way."""
    kind, key = difference.kind, difference.key
    path = kind.path(key)
    if kind.name == "bindings":
        for binding in api.get(*path):
            if binding["routing_key"] == key[4] and canonical(binding["arguments"]) == key[5]:
                api.send("DELETE", *path, binding["properties_key"])
    elif kind.name == "topic_permissions":
        # Without the exchange those of all exchanges would go.
        api.send("DELETE", *path, key[2])
    elif kind.name == "queues":
        # The server itself looks only into classic ones: quorum queues refuse the question, and streams ignore it.
        classic = (difference.before or {})["type"] == "classic"
        if not classic and (count := messages_in(api, key, (difference.before or {})["type"])):
            raise DeclarationError(NOT_EMPTY.format(messages=message_count(count)))
        api.send("DELETE", *path, query="?if-empty=true" if classic else "")
    else:
        api.send("DELETE", *path)


# --- what must not lose a message ----------------------------------------------------------------


def message_count(count: int) -> str:
    """Return so many messages in words."""
    return f"{count} message{'s' * (count != 1)}"


def counted(queue: Object) -> int:
    """Return the messages of a queue by the statistics, which may be ``STALE``."""
    return int(queue.get("messages") or 0)


def messages_in(api: Api, key: Key, queue_type: str) -> int:
    """Return the messages in a queue; for a quorum queue those of this moment, and for a stream those of ``STALE``.

    A stream cannot be asked, so the caller has closed the vhost and waited.
    """
    count = counted(api.get("queues", *key))
    if count or queue_type == "stream":
        return count
    body = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64"}
    return len(api.send("POST", "queues", *key, "get", body=body))


def connected(api: Api, vhost: str) -> list[str]:
    """Return the users that have connections to a vhost."""
    # The list of a user's connections is of this moment; that of a vhost comes with the statistics, but has shovels.
    connections = [*api.get("vhosts", vhost, "connections")]
    for user in api.get("users"):
        connections += [one for one in api.get("connections", "username", user["name"]) if one["vhost"] == vhost]
    return sorted({str(one.get("user")) for one in connections})


def still_connected(users: list[str], vhost: str) -> str:
    """Return the sentence about clients that must be stopped."""
    return (
        f"Clients are connected to vhost {vhost} (of {', '.join(users)}), and what they publish meanwhile would be "
        "lost. Stop them, and run again."
    )


@contextmanager
def closed(api: Api, vhost: str, found: Topology) -> Iterator[None]:
    """Let nobody into a vhost, so that nothing is published in it meanwhile.

    Raises:
        DeclarationError: a client is connected.
    """
    path = KIND["vhost_limits"].path((vhost, "max-connections"))
    before = found["vhost_limits"].get((vhost, "max-connections"))
    api.send("PUT", *path, body={"value": 0})
    try:
        # Who has just come is in the list a moment later.
        time.sleep(1)
        if users := connected(api, vhost):
            raise DeclarationError(still_connected(users, vhost))
        yield
    finally:
        try:
            if before is None:
                api.send("DELETE", *path)
            else:
                api.send("PUT", *path, body=before)
        except ApiError as exc:
            raise DeclarationError(
                f"vhost {vhost} still lets no client in, because of its limit max-connections of 0: {exc}. "
                f"Open it with rabbitmqctl clear_vhost_limits -p {vhost}, and run again."
            ) from exc


def inspect(api: Api, changes: list[ObjectDifference], recreate: str) -> None:
    """Find out which differences must not be written, because messages would be lost, and which may after all.

    Args:
        api: the server.
        changes: the differences; their ``obstacle`` and ``recreate`` are set.
        recreate: ``none``, ``empty`` or ``messages-kept``.
    """
    clients: dict[str, list[str]] = {}
    for change in changes:
        vhost = change.key[0]
        if change.kind.name == "vhosts" and change.after is None:
            count = sum(counted(queue) for queue in api.get("queues", vhost))
            change.obstacle = NOT_EMPTY.format(messages=message_count(count)) if count else ""
        elif change.kind.name in ("queues", "exchanges") and change.before is not None:
            deleted, stream = change.after is None, change.before.get("type") == "stream"
            if not deleted and recreate == "none":
                continue
            count = counted(api.get("queues", *change.key)) if change.kind.name == "queues" else 0
            if (not deleted or stream) and vhost not in clients:
                clients[vhost] = connected(api, vhost)
            change.obstacle = why_not(change, count, recreate, api) or (
                still_connected(clients[vhost], vhost) if clients.get(vhost) and (stream or not deleted) else ""
            )
            change.recreate = not deleted and not change.obstacle


def why_not(change: ObjectDifference, count: int, recreate: str, api: Api) -> str:
    """Return why a queue that holds messages is not deleted or recreated."""
    before, after = change.before or {}, change.after
    if not count:
        return ""
    if after is None:
        return NOT_EMPTY.format(messages=message_count(count))
    if recreate == "empty":
        return (
            f"It holds {message_count(count)} and is recreated only when it is empty. Consume them or, to keep them, "
            "set 'recreate' to messages-kept, and run again."
        )
    if "stream" in (before["type"], after["type"]):
        return (
            f"It holds {message_count(count)}, which cannot be moved from or into a stream as they are. Declare it "
            "under another name, or delete it by hand when they are not needed."
        )
    if count > after["arguments"].get("x-max-length", count) or "x-max-length-bytes" in after["arguments"]:
        return (
            f"It holds {message_count(count)}, some of which its declared length would drop. Raise it, or consume them."
        )
    if not all("rabbitmq_shovel" in node["enabled_plugins"] for node in api.get("nodes")):
        return f"It holds {message_count(count)}. {NEEDS_SHOVEL}"
    return ""


# --- recreation -----------------------------------------------------------------------------------


def recreate(api: Api, change: ObjectDifference, found: Topology, doomed: set[Key]) -> None:
    """Delete a queue or exchange, make it as declared, and bind it as it was; messages wait in a queue beside it.

    Args:
        api: the server.
        change: the difference.
        found: the topology as it was read.
        doomed: keys of bindings that shall not be.
    """
    vhost, name = change.key
    messages = 0
    if change.kind.name == "queues":
        messages = counted(api.get("queues", vhost, name))
    if messages:
        keep(api, vhost, name)
    with closed(api, vhost, found):
        if change.kind.name == "queues" and (change.before or {})["type"] != "classic":
            time.sleep(STALE)
        delete(api, change)
        try:
            write(api, change)
        except ApiError as exc:
            write(api, ObjectDifference(change.kind, change.key, None, change.before))
            raise DeclarationError(f"{exc} It is there again, as it was.") from exc
        finally:
            place = {"queues": "queue", "exchanges": "exchange"}[change.kind.name]
            for key, binding in found["bindings"].items():
                ends = {("exchange", key[1]), (key[2], key[3])}
                if key[0] == vhost and (place, name) in ends and key not in doomed:
                    write(api, ObjectDifference(KIND["bindings"], key, None, binding))
    if messages:
        move(api, vhost, name + KEPT, name)
        api.send("DELETE", "queues", vhost, name + KEPT, query="?if-empty=true")


def keep(api: Api, vhost: str, name: str) -> None:
    """Move the messages of a queue into one beside it, in which nothing happens to them."""
    path = ("queues", vhost, name + KEPT)
    api.send("PUT", *path, body={"durable": True, "arguments": {"x-queue-type": "classic"}})
    queue = api.get(*path)
    if dropping := set(queue.get("effective_policy_definition") or {}) & set(DROPPING):
        api.send("DELETE", *path, query="?if-empty=true")
        raise DeclarationError(
            f"its messages would wait in the queue {name + KEPT}, to which a policy applies that sets "
            f"{', '.join(sorted(dropping))} and would drop them. Give the policy a pattern that ends with the name of "
            "the queue ($), and run again."
        )
    try:
        move(api, vhost, name, name + KEPT)
    except ApiError as exc:
        api.send("DELETE", *path, query="?if-empty=true")
        raise DeclarationError(f"{exc} {NEEDS_SHOVEL}") from exc


def move(api: Api, vhost: str, source: str, target: str) -> None:
    """Move what is in a queue into another one, by a shovel that acknowledges only what the target has confirmed.

    Raises:
        DeclarationError: it does not move; every message is in one of the two.
    """
    path = KIND["parameters"].path(("shovel", vhost, SHOVEL))
    # Without a host the shovel needs no password.
    uri = f"amqp:///{quote(vhost, safe='')}"
    value = {
        "src-protocol": "amqp091",
        "src-uri": uri,
        "src-queue": source,
        "src-delete-after": "queue-length",
        "dest-protocol": "amqp091",
        "dest-uri": uri,
        "dest-queue": target,
        "ack-mode": "on-confirm",
    }
    api.send("PUT", *path, body={"value": value})
    deadline, last = time.monotonic() + PATIENCE, None
    # It deletes itself at the end.
    while any(one["name"] == SHOVEL and one["vhost"] == vhost for one in api.get("parameters", "shovel")):
        left = counted(api.get("queues", vhost, source))
        if left != last:
            deadline, last = time.monotonic() + PATIENCE, left
        if time.monotonic() > deadline:
            api.send("DELETE", *path)
            raise DeclarationError(
                f"its messages do not move from {source} to {target} in vhost {vhost}; the log of RabbitMQ says why. "
                "None is lost: each is in one of the two. Repair what the log names, and run again."
            )
        time.sleep(0.5)


def unfinished(present: Topology, found: Topology) -> list[ObjectDifference]:
    """Return the queues in which an interrupted run has left the messages of declared ones."""
    kept = [(vhost, name + KEPT) for vhost, name in present["queues"]]
    return [ObjectDifference(KIND["queues"], key, found["queues"][key], None) for key in kept if key in found["queues"]]


# --- all of it -----------------------------------------------------------------------------------


class PartlyWrittenError(Exception):
    """Not all could be written; the arguments are what was done, and what was left."""

    def __init__(self, reason: str, done: list[ObjectDifference], left: list[ObjectDifference]) -> None:
        super().__init__(reason)
        self.done = done
        self.left = left


def apply(api: Api, changes: list[ObjectDifference], found: Topology) -> None:
    """Write the differences in order.

    Raises:
        PartlyWrittenError: the server refused one; the earlier ones were written.
    """
    doomed = {change.key for change in changes if change.kind.name == "bindings" and change.after is None}
    for number, change in enumerate(changes):
        try:
            if change.recreate:
                recreate(api, change, found, doomed)
            elif change.after is None and (change.before or {}).get("type") == "stream":
                with closed(api, change.key[0], found):
                    time.sleep(STALE)
                    write(api, change)
            else:
                if change.after is None and change.kind.name == "queues" and change.key[1].endswith(KEPT):
                    move(api, *change.key, change.key[1].removesuffix(KEPT))
                write(api, change)
        except (ApiError, DeclarationError) as exc:
            raise PartlyWrittenError(f"{change.label}: {exc}", changes[:number], changes[number:]) from exc


def diff_of(changes: list[ObjectDifference]) -> dict[str, dict[str, Object]]:
    """Return the two sides as ``--diff`` shows them, with secrets masked."""
    return {
        "before": {change.label: change.shown(change.before) for change in changes if change.before is not None},
        "after": {change.label: change.shown(change.after) for change in changes if change.after is not None},
    }

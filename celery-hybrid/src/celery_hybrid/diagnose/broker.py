"""Waiting and unacknowledged messages in Redis, over the very URL and options that the workers use."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from celery_hybrid.broker import separators
from celery_hybrid.broker.unacknowledged import UnacknowledgedReader

#: How much is read at most: Redis answers no other client meanwhile.
_SCANS, _SCAN_COUNT = 20, 1000
_SAMPLE = 10
_IN_HAND = 500
# Where Celery's remote control gets its answers.
_REPLIES = ".reply.celery.pidbox"
_RESULT = "celery-task-meta-"


def read(channel: Any, declared: Iterable[str], exchanges: Iterable[str] = ()) -> dict[str, Any]:
    """Read queues, what is unacknowledged, and the clock.

    Args:
        channel: of kombu's Redis transport.
        declared: names of queues that count also while they are empty.
        exchanges: names of exchanges whose bindings are looked at.
    """
    declared = sorted(declared)
    client = channel.client
    seconds, micros = client.time()
    clock = time.time() - seconds - micros / 1e6
    lists, results, complete = _names(channel)
    foreign = list(separators.foreign_lists(lists, declared, channel.sep))
    lists = [name for name in lists if name not in {each for each, _, _ in foreign}]
    return {
        "clock_ahead": round(clock, 3),
        "visibility_timeout": channel.visibility_timeout,
        "queues": list(_queues(channel, declared, lists)),
        "foreign_lists": [
            {"list": name, "queue": queue, "priority": priority, "length": channel.client.llen(name)}
            for name, queue, priority in foreign
        ],
        "foreign_bindings": list(_foreign_bindings(channel, exchanges)),
        "unacked": unacked(channel),
        "results_in_redis": results,
        "all_keys_seen": complete,
    }


def _names(channel: Any) -> tuple[list[str], int, bool]:
    """Names of lists, and how many keys are results, as far as a bounded look goes."""
    lists: set[str] = set()
    results = cursor = 0
    if channel.global_keyprefix:
        return [], 0, False
    # The type of each key would cost a question; lists are found with a scan of their own.
    for wanted in ("list", "string"):
        cursor = 0
        for _ in range(_SCANS):
            cursor, keys = channel.client.scan(cursor, count=_SCAN_COUNT, _type=wanted)
            names = [key.decode("utf-8", "replace") for key in keys]
            if wanted == "list":
                lists.update(name for name in names if not name.endswith(_REPLIES))
            else:
                results += sum(name.startswith(_RESULT) for name in names)
            if not cursor:
                break
    return sorted(lists), results, not cursor


def _foreign_bindings(channel: Any, exchanges: Iterable[str]) -> Iterator[dict[str, str]]:
    """Bindings that stock kombu with this channel's separator cannot read."""
    for exchange in sorted(exchanges):
        for member in channel.client.smembers(channel.keyprefix_queue % (exchange,)):
            text = member.decode("utf-8", "replace")
            if len(text.split(channel.sep)) != 3:
                yield {"exchange": exchange, "binding": text}


def _queues(channel: Any, declared: list[str], lists: list[str]) -> Iterator[dict[str, Any]]:
    steps = channel.priority_steps
    known = {channel._q_for_pri(queue, step): (queue, step) for queue in declared for step in steps}
    for name in lists:
        queue, sep, step = name.rpartition(channel.sep)
        own = (queue, int(step)) if sep and step.isdigit() and int(step) in steps else (name, 0)
        known.setdefault(name, own)
    for key, (queue, step) in sorted(known.items(), key=lambda item: item[1]):
        length = channel.client.llen(key)
        sample = [*channel.client.lrange(key, -_SAMPLE, -1)] if length else []
        if length > _SAMPLE:
            sample += channel.client.lrange(key, 0, min(_SAMPLE, length - _SAMPLE) - 1)
        messages = [message for message in map(_message, sample) if message]
        if queue not in declared and not messages:
            continue  # a list of the application
        yield {
            "queue": queue,
            "priority": step,
            "length": length,
            "content_types": Counter(message["content_type"] for message in messages),
            "unreadable": len(sample) - len(messages),
            # Right is the end that is taken first.
            "next": messages[:1],
        }


def _message(raw: bytes) -> dict[str, Any] | None:
    """Of a message in kombu's envelope what tells people which task it is; never its arguments."""
    try:
        return _described(json.loads(raw))
    except ValueError:
        return None


def _described(data: Any) -> dict[str, Any] | None:
    try:
        headers, info = data["headers"], data["properties"].get("delivery_info") or {}
        return {
            "id": str(headers.get("id") or data["properties"].get("correlation_id")),
            "task": str(headers.get("task")),
            "origin": str(headers.get("origin")),
            "retries": headers.get("retries") or 0,
            "eta": headers.get("eta"),
            "redelivered": bool(headers.get("redelivered") or info.get("redelivered")),
            "content_type": str(data["content-type"]),
            "queue": str(info.get("routing_key")),
        }
    except (KeyError, TypeError, AttributeError):
        return None


def unacked(channel: Any) -> dict[str, Any]:
    """What workers have taken and not acknowledged, the oldest first, with its age in seconds."""
    reader = UnacknowledgedReader(channel)
    now = time.time()
    messages = []
    for each in reader.read(_IN_HAND):
        found = {"tag": each.name.decode("utf-8", "replace"), "age": round(now - each.taken, 1)}
        try:
            message, key = each.unpacked()
            found |= _described(message) or {}
            found["queue"] = key
        except ValueError:
            found["body"] = "missing" if each.entry is None else "unreadable"
        messages.append(found)
    return {
        "count": reader.count(),
        "messages": messages,
    }


def still_unacked(channel: Any, tags: Iterable[str]) -> list[str]:
    """Those of *tags* that are still unacknowledged."""
    return UnacknowledgedReader(channel).still(tags)

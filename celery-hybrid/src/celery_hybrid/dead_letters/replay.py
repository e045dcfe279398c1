"""Sending the very task of a dead letter again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kombu.utils.json import dumps

from celery_hybrid.dead_letters.letter import DeadLetter, iso
from celery_hybrid.errors import HybridError

#: Seconds that a replay is remembered: longer than the letters are kept by default.
_REMEMBERED = 60 * 24 * 3600
_OF_THE_DELIVERY = frozenset({"delivery_tag", "delivery_info", "body_encoding", "expiration"})


class ReplayedError(HybridError):
    """A letter was replayed before.

    Args:
        at: when, as ISO 8601.
        copy: whether it was this very message, so that this letter is a copy which a crash has left.
    """

    def __init__(self, at: str, copy: bool) -> None:
        super().__init__(at)
        self.copy = copy


def send(
    channel: Any,
    letter: DeadLetter,
    queue: str,
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    marker: str | None = None,
    again: bool = False,
) -> None:
    """Put the message of a letter into a queue of Redis, as kombu would, and return when Redis has it.

    Args:
        channel: of kombu's Redis transport.
        letter: whose body goes there as it is.
        queue: which.
        headers: of the message.
        properties: of the message.
        marker: key in Redis that remembers, in the same transaction, that this was done.
        again: do it although it was done.

    Raises:
        ReplayedError: it was done before.
    """
    kept = {name: value for name, value in properties.items() if name not in _OF_THE_DELIVERY}
    message = channel.prepare_message(
        letter.body,
        content_type=letter.content_type,
        content_encoding=letter.content_encoding,
        headers=dict(headers),
        properties=kept,
    )
    channel._inplace_augment_message(message, "", queue)
    key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))

    def push(pipe: Any) -> None:
        # Commands that kombu prefixes with its global_keyprefix; GET is none of them.
        done, message_of = (_str(pipe.hget(marker, name)) for name in ("at", "message")) if marker else ("", "")
        # What was replayed by a version that did not note the message may be another one.
        if done and not again and message_of in ("", letter.fingerprint):
            raise ReplayedError(done, copy=bool(message_of))
        pipe.multi()
        pipe.lpush(key, dumps(message))
        if marker:
            pipe.hset(marker, "at", iso(time.time()))
            pipe.hset(marker, "message", letter.fingerprint)
            pipe.pexpire(marker, _REMEMBERED * 1000)

    with channel.conn_or_acquire() as client:
        client.transaction(push, *([marker] if marker else []))


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""

"""Names on the wire.

They are fixed, so that every version of this package, the ``rabbitmq`` role and a person with
``rabbitmqctl`` agree on where a result is. What must exist in RabbitMQ under these names stands in
``rabbitmq/topology.json``; a test compares both.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from typing import Any
from uuid import UUID

from celery_hybrid.errors import IdError

RESULTS_EXCHANGE = "celery.results"
"""Direct exchange that every record is published to."""

ARCHIVE_PREFIX = "celery.results."
"""An archive stream is named by this and its partition's number, and bound with its own name."""

REPLY_PREFIX = "celery.reply."
"""A reply queue is named by this and the reply address of its client process, and bound with its own name."""

CHORD_PREFIX = "celery.chord."
"""In Redis, a hash: what is counted of one chord is named by this and the id of its header's group."""

CHORDS_READY = "celery.chords.ready"
"""In Redis, a sorted set: chords that a process is finishing, by the server's time when that began."""

CHORDS_OPEN = "celery.chords.open"
"""In Redis, a sorted set: chords that a part was counted of, by the server's time when they are given up."""

FINISH_CHORD = "celery_hybrid.finish_chord"
"""Task that sends the body of a chord whose last part was counted by a process that could not."""

CHORDS_QUEUE = "celery.chords"
"""Queue that earlier versions counted the parts of chords in. Workers empty it into Redis where it still exists."""

JOURNAL_QUEUE = "celery.journal"
"""Quorum queue of the newest records, bound with its own name; used with the option ``survive_power_loss``."""

REPLAYED_EXCHANGE = "celery.journal.replayed"
"""Exchange that is not durable: it exists when the journal was replayed since RabbitMQ has started."""

DEAD_LETTER_EXCHANGE = "celery.dlx"
DEAD_LETTER_QUEUE = "celery.dead_letters"

REFUSED_RESULT_KEY = "result.refused"
"""Routing key of a result that a reader did not accept."""

REFUSED_EXCHANGE = "celery.refused"
"""Direct exchange of refused results, from which only they reach the dead letters: all that clients may send there."""


def letters_exchange(routing_key: str) -> str:
    """Return the exchange that a dead letter is published to."""
    return REFUSED_EXCHANGE if routing_key == REFUSED_RESULT_KEY else DEAD_LETTER_EXCHANGE


TASK_KEY_PREFIX = "task."
"""Begins the routing key of a task's dead letter; its reason follows, see :mod:`celery_hybrid.dead_letters.letter`."""

ID_HEADER = "id"
"""Header with the whole id of a record whose properties only hold its hash, see :func:`short_id`."""

_LONGEST_ID = 200


def id_of(value: Any) -> str:
    """Return the id of a task or group as text: a UUID object counts as its text, as in Celery's own backends.

    Args:
        value: what an application has given as an id.

    Raises:
        IdError: it is neither text nor a UUID, or it cannot be encoded.
    """
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        raise IdError(
            f"The id of a task or group must be a string or a UUID, not {type(value).__name__} {value!r:.100}. "
            "Pass str(...) of it where the task is sent."
        )
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise IdError(
            f"The id {text!a:.100} of a task or group has characters that UTF-8 cannot encode (lone surrogates). "
            "Use another id."
        ) from None
    return text


def short_id(record_id: str) -> str:
    """Return an id as it fits into a property of a message: itself, or a hash when it is long or cannot be encoded.

    RabbitMQ takes 255 bytes at most (AMQP 0-9-1, 4.2.5.3, short strings); dead letters add a suffix to the task's id.
    """
    if len(record_id) <= _LONGEST_ID:
        with contextlib.suppress(UnicodeEncodeError):
            if len(record_id.encode()) <= _LONGEST_ID:
                return record_id
    return f"sha256:{hashlib.sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()}"


def partition_of(record_id: str, partitions: int) -> int:
    """Return the partition that holds the records of a task or group.

    Computed here and not by a consistent-hash exchange, whose placement a reader cannot reproduce.

    Args:
        record_id: id of the task or group.
        partitions: number of archive streams.
    """
    # Total: a foreign program may have published any id.
    return zlib.crc32(record_id.encode("utf-8", "surrogatepass")) % partitions


def archive_stream(partition: int) -> str:
    """Return the name, and routing key, of a partition's stream."""
    return f"{ARCHIVE_PREFIX}{partition}"


def reply_queue(reply_to: str) -> str:
    """Return the name, and routing key, of a client process's reply queue."""
    return f"{REPLY_PREFIX}{reply_to}"

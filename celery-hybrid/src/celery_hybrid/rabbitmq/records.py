"""Records: one message each for a result, a group, or the wish to forget one.

A record never changes. What holds for an id is the outcome of all its records, see :func:`outcome`.

The records of a task arrive in any order: a host that was cut off delivers its outbox late, and a task that is taken
over by another worker runs there while the first one still writes. So each record carries what tells the runs of a
task apart, and no decision depends on the clock of the host that wrote it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import amqp
from celery import states

from celery_hybrid.names import (
    CHORDS_QUEUE,
    ID_HEADER,
    JOURNAL_QUEUE,
    RESULTS_EXCHANGE,
    TASK_KEY_PREFIX,
    archive_stream,
    letters_exchange,
    partition_of,
    reply_queue,
    short_id,
)

RESULT, GROUP, FORGET, SEED = "result", "group", "forget", "seed"

#: What a chord is counted by, see :mod:`celery_hybrid.results.chords`.
CHORD_PART, CHORD_SIZE, CHORD_GROWTH, CHORD_SHAPE = "chord-part", "chord-size", "chord-growth", "chord-shape"
CHORD_KINDS = frozenset({CHORD_PART, CHORD_SIZE, CHORD_GROWTH, CHORD_SHAPE})

#: A task that was dead-lettered, see :mod:`celery_hybrid.dead_letters.letter`. Its subject is the routing key.
DEAD_LETTER = "dead-letter"

#: What a tombstone hides; a task and a group may have the same id.
FORGETS_HEADER = "forgets"

_WORDS = {
    RESULT: "a result",
    GROUP: "a group",
    FORGET: "that a result is forgotten",
    SEED: "a test message",
    DEAD_LETTER: "a dead letter",
}

# What Python adds to a record that is kept: measured as about 700 bytes with CPython 3.11.
_OVERHEAD = 700


@dataclass(frozen=True)
class Record:
    """One message of the result store.

    Attributes:
        id: the task's or the group's.
        kind: :data:`RESULT`, :data:`GROUP`, :data:`FORGET` (hides what came before it), :data:`SEED` (only makes a
            stream non-empty), :data:`DEAD_LETTER`, or one of :data:`CHORD_KINDS`.
        subject: what it is about, :data:`RESULT` or :data:`GROUP`: a tombstone hides one of them.
        status: the Celery state of a result.
        group: id of the chord's header, for those of :data:`CHORD_KINDS`.
        body: the serialized meta, as it is on the wire.
        content_type: of the body.
        content_encoding: of the body.
        compression: content type of the compression, empty for none.
        timestamp: seconds since the epoch, by the publisher's clock.
        run: number of the run that wrote it; it grows with each take of the task's message from Redis. 0 when it is
            not known: the broker gives no number, or no task wrote the record.
        retries: of the task in that run (``request.retries``), -1 when no task wrote the record.
        offset: place in the archive stream, -1 when it did not come from there.
    """

    id: str
    kind: str
    subject: str = RESULT
    status: str = ""
    group: str = ""
    body: bytes = field(default=b"", repr=False)
    content_type: str = "application/octet-stream"
    content_encoding: str = "binary"
    compression: str = ""
    timestamp: int = field(default_factory=lambda: int(time.time()))
    run: int = 0
    retries: int = -1
    offset: int = -1

    @classmethod
    def tombstone(cls, record_id: str, subject: str) -> Record:
        """Return the record that makes all earlier ones of a task or group invisible."""
        return cls(record_id, FORGET, subject=subject)

    @classmethod
    def from_message(cls, message: amqp.Message) -> Record:
        """Return the record in a message. A field that is missing or odd becomes empty: reading never fails."""
        properties: Mapping[str, Any] = message.properties
        headers: Mapping[str, Any] = properties.get("application_headers") or {}
        kind = _text(properties.get("type"))
        body = message.body
        return cls(
            id=_text(headers.get(ID_HEADER)) or _text(properties.get("correlation_id")),
            kind=kind,
            subject=(_text(headers.get(FORGETS_HEADER)) or RESULT) if kind == FORGET else kind,
            status=_text(headers.get("status")),
            group=_text(headers.get("group")),
            body=body.encode() if isinstance(body, str) else bytes(body or b""),
            content_type=_text(properties.get("content_type")),
            content_encoding=_text(properties.get("content_encoding")) or "utf-8",
            compression=_text(headers.get("compression")),
            timestamp=_seconds(properties.get("timestamp")),
            run=max(0, _number(headers.get("run"))),
            retries=max(-1, _number(headers.get("retries"))),
            offset=_number(headers.get("x-stream-offset")),
        )

    def to_message(self, reply_to: str | None = None, journal: bool = False) -> amqp.Message:
        """Return the message, copied by RabbitMQ to the reply queue of ``reply_to`` and the journal.

        ``BCC`` is sender-selected distribution (https://www.rabbitmq.com/docs/sender-selected): one publish and one
        confirm for two destinations, and a reply queue that has vanished is not an error. ``x-stream-filter-value``
        lets RabbitMQ 3.13 and newer skip what a reader does not look for; older ones ignore it.
        """
        if self.kind == DEAD_LETTER:
            return amqp.Message(
                self.body,
                type=self.kind,
                message_id=short_id(self.id),
                content_type=self.content_type,
                content_encoding=self.content_encoding,
                delivery_mode=2,
                timestamp=self.timestamp,
                application_headers={"reason": self.subject.removeprefix(TASK_KEY_PREFIX)},
            )
        short = short_id(self.id)
        headers: dict[str, Any] = {"x-stream-filter-value": short or self.kind}
        if short != self.id:
            headers[ID_HEADER] = self.id
        if self.status:
            headers["status"] = self.status
        if self.group:
            headers["group"] = self.group
        if self.run:
            headers["run"] = self.run
        if self.retries >= 0:
            headers["retries"] = self.retries
        if self.kind == FORGET:
            headers[FORGETS_HEADER] = self.subject
        if self.compression:
            headers["compression"] = self.compression
        copies = [reply_queue(reply_to)] if reply_to else []
        if journal and self.kind not in CHORD_KINDS:
            copies.append(JOURNAL_QUEUE)
        if copies:
            headers["BCC"] = copies
        return amqp.Message(
            self.body,
            type=self.kind,
            correlation_id=short,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            # Streams and quorum queues keep every message on disk; this only concerns the copy in a reply queue,
            # which the archive backs (https://www.rabbitmq.com/docs/streams#feature-comparison).
            delivery_mode=2 if self.kind in CHORD_KINDS else 1,
            timestamp=self.timestamp,
            application_headers=headers,
        )

    def routing_key(self, partitions: int) -> str:
        """Return where it goes: the queue of chords, that of dead letters, or the stream of its id.

        Args:
            partitions: number of archive streams.
        """
        if self.kind == DEAD_LETTER:
            return self.subject
        return CHORDS_QUEUE if self.kind in CHORD_KINDS else archive_stream(partition_of(self.id, partitions))

    @property
    def exchange(self) -> str:
        """The exchange that it is published to."""
        return letters_exchange(self.subject) if self.kind == DEAD_LETTER else RESULTS_EXCHANGE

    @property
    def key(self) -> tuple[str, str]:
        """What the records of one outcome have in common."""
        return (self.subject, self.id)

    @property
    def what(self) -> str:
        """What it is, for messages to people."""
        return _WORDS.get(self.kind, "a part of a chord" if self.kind in CHORD_KINDS else "a record")

    @property
    def size(self) -> int:
        """About the memory that this record takes while it is kept, in bytes."""
        return len(self.body) + 2 * len(self.id) + _OVERHEAD

    @property
    def ready(self) -> bool:
        """Whether it is the result of a task that has ended."""
        return self.kind == RESULT and self.status in states.READY_STATES


def outcome(kept: Record | None, record: Record) -> Record:
    """Return the record that holds when ``record`` has come behind ``kept``.

    The one rule for all readers:

    * The first SUCCESS wins, as in Celery's own backends: a task that ran twice does not change its result.
    * Otherwise the latest run wins, by :attr:`Record.run`, then by :attr:`Record.retries`; within a run a final state
      beats an unfinished one; of two equal records the one that came last.
    * A tombstone hides everything before it, a SUCCESS as well, and what comes behind it from a run that it has
      hidden: a record that was delivered late, or twice.

    A record that does not say its run counts to the latest run before it. Expired records are left out before.

    Args:
        kept: the outcome of what came before, None when there is nothing.
        record: what came next.
    """
    if kept is None:
        return record
    if record.kind == FORGET:
        # It remembers the latest that it hides.
        return replace(record, run=kept.run, retries=kept.retries, status=kept.status) if kept.run else record
    known = bool(record.run)
    run = record.run or kept.run
    retries = record.retries if record.retries >= 0 else kept.retries
    if (run, retries) != (record.run, record.retries):
        record = replace(record, run=run, retries=retries)
    if kept.kind == FORGET:
        return kept if known and _rank(record) <= _rank(kept) else record
    if _succeeded(kept) or _succeeded(record):
        return kept if _succeeded(kept) else record
    return record if _rank(record) >= _rank(kept) else kept


def superseded(records: Sequence[Record]) -> set[int]:
    """Return the places of unfinished results behind which a record of the same task makes them meaningless.

    Args:
        records: in the order in which they are to be stored.
    """
    latest: dict[tuple[str, str], Record] = {}
    places: set[int] = set()
    for place, record in reversed(list(enumerate(records))):
        later = latest.setdefault(record.key, record)
        unfinished = record.kind == later.kind == RESULT and not record.ready
        if later is not record and unfinished and _rank(later) >= _rank(record):
            places.add(place)
        else:
            latest[record.key] = record
    return places


def _rank(record: Record) -> tuple[int, int, int]:
    """Return what orders the records of a task, but for the first SUCCESS."""
    finality = 0 if record.status not in states.READY_STATES else 2 if record.status == states.SUCCESS else 1
    return (record.run, record.retries, finality)


def _succeeded(record: Record) -> bool:
    return record.kind == RESULT and record.status == states.SUCCESS


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _seconds(value: Any) -> int:
    # py-amqp hands the timestamp property over as a number; a datetime would come from a header.
    if hasattr(value, "timestamp"):
        return int(value.timestamp())
    return value if isinstance(value, int) else 0

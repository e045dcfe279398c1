"""The journal: the newest records once more, where the power of a single node may fail.

RabbitMQ confirms a record of a stream when the kernel has it, and does not wait for the disk
(https://www.rabbitmq.com/docs/streams#data-safety). With the option ``survive_power_loss`` each record also goes, in
the same publish, to a quorum queue, which is on the disk before its confirm
(https://www.rabbitmq.com/docs/quorum-queues#data-safety). Its messages expire after some minutes, when the kernel has
long written the stream.

After a start of RabbitMQ one worker compares the journal with the streams, and stores again what they have lost. What
they still have is left alone, and so is what was stored or forgotten since: a record is added only where it
is what holds for its task.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import amqp

from celery_hybrid.archive.archive import Archive
from celery_hybrid.archive.index import Key
from celery_hybrid.names import JOURNAL_QUEUE, REPLAYED_EXCHANGE, RESULTS_EXCHANGE
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.objects import JOURNAL_SECONDS
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.receiver import Receiver
from celery_hybrid.rabbitmq.records import FORGET, Record, outcome

logger = logging.getLogger(__name__)

JOURNAL = "journal"

# The streams are compared this much further back than the journal goes; their server dates both.
_MARGIN = 60.0

# Seconds without a message after which the rest of the journal is taken to have expired.
_SILENCE = 2.0

# Records that are looked up, or under way to RabbitMQ, at a time.
_BATCH = 200


@dataclass
class Noted:
    """What the journal has of one task or group.

    Attributes:
        held: the outcome of its records.
        tombstone: the last one among them.
        identities: of all of them.
    """

    held: Record | None = None
    tombstone: Record | None = None
    identities: set[int] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Take the next record into account."""
        self.held = outcome(self.held, record)
        self.identities.add(_identity(record))
        if record.kind == FORGET:
            self.tombstone = record

    def missing(self, stored: Record | None) -> list[Record]:
        """Return the records that the stream lacks, in the order in which they are to be stored.

        Args:
            stored: what holds by the stream's newest records, a tombstone maybe.
        """
        held = self.held
        if held is None or (stored is not None and _identity(stored) == _identity(held)):
            return []
        if stored is not None and _identity(stored) not in self.identities:
            # Stored since RabbitMQ has started: it comes behind all that the journal has.
            then = outcome(held, stored)
            if then.kind == FORGET or _identity(then) != _identity(held):
                return []
        # An earlier SUCCESS may still be there.
        return [held] if held.kind == FORGET or self.tombstone is None else [self.tombstone, held]


def _identity(record: Record) -> int:
    status = "" if record.kind == FORGET else record.status
    return hash((record.key, record.kind, status, record.timestamp, record.body))


class Journal(Receiver):
    """Replays the journal after each start of RabbitMQ, in a thread of a worker's main process.

    All workers have one; the one that reads the queue first does it, and another if that one dies.

    Args:
        servers: where.
        options: the number of partitions and timeouts.
        prepare: checks the topology on a new connection.
    """

    def __init__(self, servers: Servers, options: Options, prepare: Callable[[amqp.Connection], None]) -> None:
        super().__init__(servers, options, prepare, JOURNAL, "The journal cannot be compared with the streams now.")
        self._archive = Archive(servers, options, JOURNAL_SECONDS + _MARGIN, prepare)
        self.replayed = threading.Event()

    def stop(self) -> None:
        """End for good."""
        super().stop()
        self._archive.close()

    def abandon(self) -> None:
        """In a child: leave the parent's connections alone."""
        super().abandon()
        self._archive.abandon()

    def _enter(self, channel: amqp.Channel) -> None:  # noqa: ARG002 - it reads over channels of its own
        self.replayed.clear()

    def _idle(self) -> None:
        connection = self._connection
        if connection is None or self.replayed.is_set():
            return
        if _is_replayed(connection) or self._replay(connection):
            self.replayed.set()

    def _replay(self, connection: amqp.Connection) -> bool:
        """Store what the streams have lost; return False when another worker is at it, or this one ends."""
        with _taken(connection) as noted:
            if noted is None:
                return False
            count = 0
            streams = ConfirmedChannel(connection)
            keys = list(noted)
            for begin in range(0, len(keys), _BATCH):
                if self._stopping.is_set():
                    return False
                batch = keys[begin : begin + _BATCH]
                stored = self._archive.outcomes(batch)
                missing = [record for key in batch for record in noted[key].missing(stored.get(key))]
                self._store(streams, missing)
                count += len(missing)
            streams.close()
        # Not durable, so it is gone after the next start.
        with connection.channel() as channel:
            channel.exchange_declare(REPLAYED_EXCHANGE, "fanout", durable=False, auto_delete=False)
        if count:
            logger.info("RabbitMQ has started: %d records of its journal are in their streams again.", count)
        return True

    def _store(self, streams: ConfirmedChannel, records: list[Record]) -> None:
        # Into the journal again as well: the power may fail once more.
        numbers = [
            streams.publish(
                record.to_message(journal=True), RESULTS_EXCHANGE, record.routing_key(self._options.partitions)
            )
            for record in records
        ]
        for number in numbers:
            streams.wait(number, self._options.confirm_timeout)


@contextlib.contextmanager
def _taken(connection: amqp.Connection) -> Iterator[dict[Key, Noted] | None]:
    """Yield what the journal has, None when another worker has it; it is all there again afterwards."""
    channel = connection.channel()
    # Those that come in meanwhile were confirmed by the RabbitMQ that runs now.
    count = channel.queue_declare(JOURNAL_QUEUE, passive=True).message_count
    noted: dict[Key, Noted] = {}
    got = 0

    def take(message: amqp.Message) -> None:
        nonlocal got
        got += 1
        record = Record.from_message(message)
        noted.setdefault(record.key, Noted()).add(record)

    try:
        channel.basic_consume(JOURNAL_QUEUE, exclusive=True, callback=take)
    except amqp.exceptions.AccessRefused:
        yield None  # RabbitMQ has closed the channel
        return
    latest = time.monotonic()
    while got < count and time.monotonic() - latest < _SILENCE:
        before = got
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=_SILENCE)
        if got != before:
            latest = time.monotonic()
    try:
        yield noted
    finally:
        with contextlib.suppress(OSError, amqp.exceptions.AMQPError):
            channel.close()


def _is_replayed(connection: amqp.Connection) -> bool:
    channel = connection.channel()
    try:
        channel.exchange_declare(REPLAYED_EXCHANGE, "fanout", passive=True)
    except amqp.exceptions.NotFound:
        return False  # RabbitMQ has closed the channel
    channel.close()
    return True

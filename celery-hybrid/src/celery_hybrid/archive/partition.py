"""What is known of one partition of the archive, and where all of them ended at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import amqp

from celery_hybrid.archive.ages import Ages
from celery_hybrid.archive.index import Key
from celery_hybrid.archive.reader import BLOCK
from celery_hybrid.archive.wire import StreamMessage
from celery_hybrid.names import archive_stream
from celery_hybrid.rabbitmq.records import Record

# Bytes that may be under way to one reader, because RabbitMQ has them in memory meanwhile.
_READER_BYTES = 1 << 20


@dataclass(frozen=True)
class Ends:
    """Where the partitions ended at a time; what is stored later lies at or behind these places.

    Attributes:
        at: by the monotonic clock.
        places: offset and fingerprint of a record at the end of each partition, where that is known.
    """

    at: float
    places: dict[int, tuple[int, int]]


def ends_of(connection: amqp.Connection, partitions: int, patience: float = 0.1) -> Ends:
    """Return where the partitions end, as far as RabbitMQ tells within a time.

    Args:
        connection: not used elsewhere meanwhile.
        partitions: how many.
        patience: seconds. An empty partition never tells.
    """
    at = time.monotonic()
    places: dict[int, tuple[int, int]] = {}
    channel = connection.channel()
    channel.basic_qos(0, 1, False)

    def noted(number: int, message: amqp.Message) -> None:
        delivery = StreamMessage.of(message)
        places.setdefault(number, (delivery.offset, delivery.fingerprint))

    for number in range(partitions):
        tag, note = f"end-{number}", partial(noted, number)
        arguments = {"x-stream-offset": "last"}
        channel.basic_consume(archive_stream(number), tag, nowait=True, callback=note, arguments=arguments)
    with contextlib.suppress(TimeoutError):
        while len(places) < partitions and (remaining := at + patience - time.monotonic()) > 0:
            connection.drain_events(timeout=remaining)
    for number in range(partitions):
        channel.basic_cancel(f"end-{number}", nowait=True)
    channel.basic_qos(0, 1, False)  # answered when nothing more is under way
    channel.close()
    return Ends(at, places)


class Partition:
    """What was read of one partition.

    Attributes:
        number: of the partition.
        next_offset: of the first record that was not read; None when nothing was.
        last: offset and fingerprint of the last record that was read; None when none was.
        begin: the offset at which the reading began.
        complete: whether everything before is expired, or was read.
        read_at: when the latest complete reading began, by the monotonic clock.
        ages: of its records.
        asked_at: when the server was asked for an age, by the monotonic clock.
        mean: bytes of a record, as far as seen.
    """

    def __init__(self, number: int, expires: float | None) -> None:
        self.number = number
        self.stream = archive_stream(number)
        self._expires = expires
        self.mean = 1.0
        self.restart()

    def restart(self) -> None:
        """Begin again: nothing was read."""
        self.next_offset: int | None = None
        self.last: tuple[int, int] | None = None
        self.begin = 0
        self.complete = True
        self.read_at = float("-inf")
        self.ages = Ages(self._expires)
        self.asked_at = float("-inf")

    def reaches(self, since: Ends | None) -> bool:
        """Return whether what was read, if anything, goes back to an end; None for everything."""
        if self.complete or self.next_offset is None:
            return True
        place = since.places.get(self.number) if since is not None else None
        return place is not None and self.begin <= place[0]

    def weigh(self, deliveries: Collection[StreamMessage]) -> None:
        """Learn how large the records are."""
        if deliveries:
            seen = sum(delivery.size for delivery in deliveries) / len(deliveries)
            # Large ones count immediately, small ones little by little.
            self.mean = max(seen, 0.9 * self.mean + 0.1 * seen)

    @property
    def prefetch(self) -> int:
        """How many records may be under way to one reader."""
        # A power of two, as each change takes a round trip.
        return 1 << max(2, int(min(BLOCK, _READER_BYTES / self.mean)).bit_length() - 1)


class RecordCollector:
    """Records that a look-up comes by while it reads.

    Args:
        keys: of the records.
    """

    def __init__(self, keys: Collection[Key] = ()) -> None:
        self._keys = frozenset(keys)
        #: By offset.
        self.records: dict[int, Record] = {}

    def offer(self, delivery: StreamMessage) -> None:
        """Take a record if it is wanted."""
        if delivery.key in self._keys:
            self.records[delivery.offset] = delivery.record()

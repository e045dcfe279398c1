"""Reading the archive: streams that keep every record until it expires, for everybody who may read.

A stream has no look-up by key. So each partition is read once from its beginning into an index, and from then on
only what is new in it.

Facts about streams over AMQP 0-9-1 that shape this (RabbitMQ 3.10 and 4.0): there is no ``basic.get``; a prefetch
count is mandatory; the number of messages that a passive declaration tells is stale; every delivery carries its
offset in ``x-stream-offset``; a consumer that starts at ``last`` gets the last chunk at once, and a chunk is
delivered in one go, as far as the prefetch count allows.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import amqp

from celery_hybrid.connection import Link, Servers, translated
from celery_hybrid.errors import ResultStoreUnreachableError
from celery_hybrid.index import Index, Key
from celery_hybrid.names import RESULTS_EXCHANGE, archive_stream, partition_of
from celery_hybrid.options import Options
from celery_hybrid.records import FORGET, GROUP, RESULT, SEED, Record, outcome

#: Deliveries under way at once; at most one chunk of RabbitMQ (4096 entries) is fetched in few rounds.
PREFETCH = 1000

# Chunks are dated by the server and records by their publishers, whose clocks may differ.
_CLOCK_MARGIN = 600.0

# Seconds in which a stream that has something delivers it, many times over.
_EMPTY = 0.3
_CLAMPED = 2.0

_serial = itertools.count(1)


class Reader:
    """One consumer on a stream; its deliveries are collected while the connection is drained.

    Args:
        channel: the channel.
        stream: name of the stream.
        start: ``x-stream-offset``.
        only: values of ``x-stream-filter``; empty for no filter.
    """

    def __init__(self, channel: amqp.Channel, stream: str, start: Any, only: Collection[str] = ()) -> None:
        self._channel = channel
        self._arrived: list[amqp.Message] = []
        arguments: dict[str, Any] = {"x-stream-offset": start}
        if only:
            arguments["x-stream-filter"] = list(only)
        # RabbitMQ 3.10 can deliver before it says consume-ok, when an earlier consumer of the channel on this stream
        # has left an event behind; py-amqp would reject such a delivery. So tag and callback are known beforehand.
        self._tag = f"reader-{next(_serial)}"
        channel.callbacks[self._tag] = self._arrived.append
        channel.basic_consume(stream, consumer_tag=self._tag, callback=self._arrived.append, arguments=arguments)

    def wait(self, deadline: float, count: int = 1, end: int | None = None) -> None:
        """Wait until something has arrived.

        Args:
            deadline: by the monotonic clock.
            count: how much is enough.
            end: the record with this offset is enough as well.
        """
        arrived = self._arrived
        while len(arrived) < count and not (end is not None and arrived and _offset(arrived[-1]) >= end):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            try:
                self._channel.connection.drain_events(timeout=remaining)
            except TimeoutError:
                return

    @property
    def waiting(self) -> bool:
        """Whether something has arrived that was not taken."""
        return bool(self._arrived)

    def take(self) -> list[Record]:
        """Return what has arrived, and let RabbitMQ send more."""
        # The list is the callback's, so it is emptied in place.
        messages = self._arrived[:]
        del self._arrived[: len(messages)]
        if messages:
            # Also when this is the end: what is not acknowledged for 30 minutes closes the channel.
            self._channel.basic_ack(messages[-1].delivery_tag, multiple=True)
        return [Record.from_message(message) for message in messages]

    def stop(self) -> list[Record]:
        """End the consumer; return what arrived until RabbitMQ said so."""
        self._channel.basic_cancel(self._tag)
        return self.take()


def _offset(message: amqp.Message) -> int:
    return int(message.properties["application_headers"]["x-stream-offset"])


class Partition:
    """What was read of one partition.

    Attributes:
        number: of the partition.
        next_offset: of the first record that was not read; None when nothing was.
        read_at: when the latest complete reading began, by the monotonic clock.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.stream = archive_stream(number)
        self.next_offset: int | None = None
        self.read_at = float("-inf")


class Archive:
    """The archive as one process sees it.

    Threads share it and one reads at a time; those that waited meanwhile use what it has read.

    Args:
        servers: where.
        options: the number of partitions, the bound of the index, and timeouts.
        expires: seconds after which a record is invisible, whatever RabbitMQ still has; None for never.
        prepare: checks the topology on a new connection.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        expires: float | None,
        prepare: Callable[[amqp.Connection], None],
    ) -> None:
        self._options = options
        self._expires = expires
        self._prepare = prepare
        self._link = Link(servers, "reader", self._prepared)
        self._channel: amqp.Channel | None = None
        self.index = Index(self._options.index_bytes)
        self._partitions = [Partition(number) for number in range(self._options.partitions)]

    def result(self, task_id: str) -> Record | None:
        """Return the record that holds for a task, or None."""
        return self._one((RESULT, task_id))

    def group(self, group_id: str) -> Record | None:
        """Return the record of a group, or None."""
        return self._one((GROUP, group_id))

    def results(
        self, task_ids: Collection[str], max_age: float | None = None, timeout: float | None = None
    ) -> dict[str, Record]:
        """Return the records that hold for those tasks that have one.

        Args:
            task_ids: ids of the tasks.
            max_age: seconds; a partition that was read so lately is not read again. None reads whatever was
                confirmed before this call.
            timeout: seconds; ``lookup_timeout`` when it is shorter.

        Raises:
            ResultStoreUnreachableError: the archive could not be read in time. What was read is not lost: the next
                call goes on from there.
            ResultStoreError: RabbitMQ refused it.
        """
        found = self._look_up([(RESULT, task_id) for task_id in task_ids], max_age, timeout)
        return {key[1]: record for key, record in found.items()}

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone."""
        self._link.abandon()

    def _one(self, key: Key) -> Record | None:
        return self._look_up([key], None, None).get(key)

    def _look_up(self, keys: list[Key], max_age: float | None, timeout: float | None) -> dict[Key, Record]:
        asked = time.monotonic()
        limit = self._options.lookup_timeout if timeout is None else min(timeout, self._options.lookup_timeout)
        deadline = asked + limit
        fresh_since = asked if max_age is None else asked - max_age
        by_partition: dict[int, list[Key]] = {}
        for key in keys:
            by_partition.setdefault(partition_of(key[1], self._options.partitions), []).append(key)
        found: dict[Key, Record] = {}
        now = time.time()
        for number, members in sorted(by_partition.items()):
            partition = self._partitions[number]
            if partition.read_at < fresh_since:
                self._exclusively(partial(self._catch_up, partition, fresh_since, deadline), deadline)
            for key in members:
                record = self._known(key, partition, deadline)
                if record is not None and record.kind != FORGET and not record.expired(self._expires, now):
                    found[key] = record
        return found

    def _known(self, key: Key, partition: Partition, deadline: float) -> Record | None:
        entry = self.index.get(key, partition.number)
        if entry is None:
            # It was read once and forgotten since, or may have been.
            self._exclusively(partial(self._read_again, key, partition, deadline), deadline)
            entry = self.index.get(key, partition.number)
        return entry.record if entry is not None else None

    def _exclusively(self, work: Callable[[], None], deadline: float) -> None:
        """Do something with the connection; once more when it turns out to be dead."""
        with self._link.turn(deadline - time.monotonic()):
            for last in (not self._link.connected, True):
                try:
                    with translated("reading results"):
                        work()
                except ResultStoreUnreachableError:
                    self._link.drop()
                    if last or time.monotonic() >= deadline:
                        raise
                except BaseException:
                    self._link.drop()
                    raise
                else:
                    return

    def _prepared(self, connection: amqp.Connection) -> None:
        self._prepare(connection)
        channel = connection.channel()
        channel.basic_qos(0, PREFETCH, False)
        self._channel = channel

    def _open(self, deadline: float) -> amqp.Channel:
        self._link.connection(deadline - time.monotonic())
        assert self._channel is not None  # noqa: S101 - made by _prepared
        return self._channel

    def _catch_up(self, partition: Partition, fresh_since: float, deadline: float) -> None:
        """Read everything that is new in a partition."""
        if partition.read_at >= fresh_since:
            return  # another thread has just done it
        begun = time.monotonic()
        channel = self._open(deadline)
        tail = self._tail(channel, partition, deadline)
        end = tail[-1].offset
        if partition.next_offset is not None and end < partition.next_offset - 1:
            # Offsets only grow, unless the stream was deleted and declared again.
            self.index.forget_partition(partition.number)
            partition.next_offset = None
        if partition.next_offset is None or partition.next_offset < tail[0].offset:
            for record in self._scan(channel, partition, partition.next_offset, end, deadline):
                self._add(partition, record)
        for record in tail:
            self._add(partition, record)
        partition.read_at = begun

    def _add(self, partition: Partition, record: Record) -> None:
        if partition.next_offset is not None and record.offset < partition.next_offset:
            return  # a chunk begins before the offset that was asked for
        partition.next_offset = record.offset + 1
        meant = bool(record.id) and record.subject in {RESULT, GROUP}
        if meant and not record.expired(self._expires, time.time()):
            self.index.add(record, partition.number)

    def _read_again(self, key: Key, partition: Partition, deadline: float) -> None:
        """Read all records of one id, which the index does not know any more."""
        channel = self._open(deadline)
        tail = self._tail(channel, partition, deadline)
        end = tail[-1]
        merged: Record | None = None
        seen = -1
        # The last record's own value lets it through the filter as well, so that the end is seen.
        only = {key[1], end.id or end.kind}
        for record in (*self._scan(channel, partition, None, end.offset, deadline, only), *tail):
            if record.key == key and record.offset > seen:
                seen = record.offset
                merged = outcome(merged, record)
        # Records beyond next_offset will be merged once more; that leads to the same outcome.
        self.index.replace(key, merged, partition.number)

    def _tail(self, channel: amqp.Channel, partition: Partition, deadline: float) -> list[Record]:
        """Return the last records of a partition, at least one; nothing confirmed before is behind them."""
        reader = Reader(channel, partition.stream, "last")
        if partition.next_offset is None:
            reader.wait(min(deadline, time.monotonic() + _EMPTY))
            if not reader.waiting:
                self._seed(channel, partition)
        reader.wait(deadline)
        # The chunk was sent in one go, so all of it is here when the server answers the next method.
        records = reader.stop()
        if len(records) >= PREFETCH:
            # Unless the prefetch count cut it. Then each acknowledgement brings some more.
            reader = Reader(channel, partition.stream, "last")
            reader.wait(deadline)
            records = []
            while True:
                channel.basic_qos(0, PREFETCH, False)
                more = reader.take()
                records += more
                if len(more) < PREFETCH or time.monotonic() >= deadline:
                    break
            records += reader.stop()
        if not records:
            raise TimeoutError
        return records

    def _seed(self, channel: amqp.Channel, partition: Partition) -> None:
        # An empty stream delivers nothing, and there is no other way to learn that it is empty. A second seed, by
        # another process, does no harm.
        channel.basic_publish(
            Record("", SEED, subject=SEED).to_message(),
            RESULTS_EXCHANGE,
            partition.stream,
            confirm_timeout=self._options.confirm_timeout,
        )

    def _scan(
        self,
        channel: amqp.Channel,
        partition: Partition,
        start: int | None,
        end: int,
        deadline: float,
        only: Collection[str] = (),
    ) -> Iterator[Record]:
        """Yield the records of a partition from an offset (None: the oldest that is not expired) to another."""
        reader = Reader(channel, partition.stream, self._oldest() if start is None else start, only)
        if start is None:
            reader.wait(min(deadline, time.monotonic() + _CLAMPED))
            if not reader.waiting:
                # Everything is older, so the consumer stands behind the end.
                reader.stop()
                reader = Reader(channel, partition.stream, "first", only)
        offset = -1
        while offset < end:
            # Acknowledged in batches, but soon enough that RabbitMQ never runs out of credit.
            reader.wait(deadline, PREFETCH // 4, end)
            records = reader.take()
            if not records:
                raise ResultStoreUnreachableError(
                    f"{partition.stream} was not read to its end in time; the next look-up goes on from there."
                )
            offset = records[-1].offset
            yield from records
        yield from reader.stop()

    def _oldest(self) -> Any:
        if not self._expires:
            return "first"
        begin = max(0.0, time.time() - self._expires - _CLOCK_MARGIN)
        return datetime.datetime.fromtimestamp(begin, tz=datetime.UTC)

"""Reading the archive: streams that keep every record until it expires, for everybody who may read.

A stream has no look-up by key. So each partition is read once from its beginning, and from then on only what is new
in it. The index remembers where everything is; a record that is asked for is fetched from its offset.

Facts about streams over AMQP 0-9-1 that shape this (RabbitMQ 3.10 and 4.0): there is no ``basic.get``; a prefetch
count is mandatory; the number of messages that a passive declaration tells is stale; every delivery carries its
offset in ``x-stream-offset``; a consumer that starts at an offset gets exactly that first, after 3 ms; one that
starts at ``last`` gets the last chunk immediately, and a chunk is delivered in one go, as far as the prefetch count
allows, on 3.10 even beyond; a consumer that starts behind the end gets nothing until something is stored. Records
that were confirmed one by one are a chunk each, and reading a chunk takes the server far longer than sending it: one
consumer gets some 12,000 a second, sixteen on as many channels four times that.
"""

from __future__ import annotations

import bisect
import contextlib
import datetime
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import amqp

from celery_hybrid.archive.index import Block, Index, Key, KnownOutcome, place
from celery_hybrid.archive.partition import Ends, Partition, RecordCollector
from celery_hybrid.archive.reader import BLOCK, BlockReader, Blocks, Reader
from celery_hybrid.archive.wire import StreamMessage, Wire
from celery_hybrid.errors import ResultStoreError, ResultStoreUnreachableError
from celery_hybrid.names import RESULTS_EXCHANGE, partition_of, short_id
from celery_hybrid.processes import runs_tasks
from celery_hybrid.rabbitmq.connection import Link, Servers, translated
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import FORGET, GROUP, RESULT, SEED, Record, outcome

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Deliveries under way at the same time; at most one chunk of RabbitMQ (4096 entries) is fetched in few rounds.
PREFETCH = 1000

#: Consumers that read a partition at the same time, each a block of it.
READERS = 16

# Readers that a reading begins with.
_FIRST_READERS = 4

# Records that are read in the time that it takes to fetch one.
_WORTH = 60

# Pauses in which the thread that reads ahead looks whether it may go on.
_BREATH = 0.002

# Most values for which a filter is worth it: it lets through whole chunks, and some others as well.
_FILTERED = 10

# Seconds in which a stream that has something delivers it, many times over.
_EMPTY = 0.3
# Seconds that the thread that reads ahead is given to end its step, when the process ends.
_LAST_STEP = 1.0

# The server is asked for the age of records at most so often, in parts of their expiry.
_ASKED_PARTS = 64


def _runs(offsets: Iterable[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return which records are fetched one by one, and which stretches are better read as a whole.

    Fetching one takes some milliseconds; in that time sixty can be read.

    """
    single: list[int] = []
    runs: list[tuple[int, int]] = []
    todo = sorted(set(offsets))
    while todo:
        count = bisect.bisect_left(todo, todo[0] + BLOCK)
        run, todo = todo[:count], todo[count:]
        if len(run) * _WORTH > BLOCK:
            runs.append((run[0], run[-1] + 1))
        else:
            single += run
    return single, runs


class Archive:
    """The archive as one process sees it.

    Threads share it and one reads at a time; those that waited meanwhile use what it has read. A process that has asked
    once will ask again, so after the first look-up a thread reads the other partitions, while it is not asked. Not in a
    worker, whose tasks ask for an id now and then, if at all.

    Args:
        servers: where.
        options: the number of partitions, the bound of the index, and timeouts.
        expires: seconds after which a record is invisible, whatever RabbitMQ still has; None for never.
        prepare: checks the topology on a new connection.
        ends: tells where the partitions ended, lately, if this process has seen that.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        expires: float | None,
        prepare: Callable[[amqp.Connection], None],
        ends: Callable[[], Ends | None] = lambda: None,
    ) -> None:
        self._ends = ends
        self._options = options
        self._expires = expires
        self._prepare = prepare
        self._link = Link(servers, "reader", self._prepared)
        self._channel: amqp.Channel | None = None
        self.index = Index(self._options.index_bytes, self._options.partitions)
        self._partitions = [Partition(number, expires) for number in range(self._options.partitions)]
        self._guard = threading.Lock()
        self._asking = 0
        self._warming: threading.Thread | None = None
        self._closed = False

    def result(self, task_id: str) -> Record | None:
        """Return the record that holds for a task, or None."""
        return self._one((RESULT, task_id))

    def group(self, group_id: str) -> Record | None:
        """Return the record of a group, or None."""
        return self._one((GROUP, group_id))

    def results(
        self,
        task_ids: Collection[str],
        max_age: float | None = None,
        timeout: float | None = None,
        since: Ends | None = None,
        pause: Callable[[], bool] | None = None,
    ) -> dict[str, Record]:
        """Return the records that hold for those tasks that have one.

        Args:
            task_ids: ids of the tasks.
            max_age: seconds; a partition that was read so lately is not read again. None reads whatever was
                confirmed before this call.
            timeout: seconds; ``lookup_timeout`` when it is shorter.
            since: there is nothing of these tasks before. What was stored earlier need not be read then.
            pause: whether to stop early, with what is known by then. What was read is not lost.

        Raises:
            ResultStoreUnreachableError: the archive could not be read in time. What was read is not lost: the next
                call goes on from there.
            ResultStoreError: RabbitMQ refused it.
        """
        found = self._look_up([(RESULT, task_id) for task_id in task_ids], max_age, timeout, since, pause)
        if max_age is None and since is None:
            # Not for callers that wait for a result: it will be pushed to them, and they only make sure.
            self._warm()
        return {key[1]: record for key, record in found.items() if record.kind != FORGET}

    def ends_ago(self, task_ids: Collection[str], seconds: float, timeout: float) -> Ends:
        """Return where the partitions of tasks ended some time ago, by RabbitMQ's times and this host's clock.

        Raises:
            ResultStoreUnreachableError: RabbitMQ does not answer in time.
            ResultStoreError: RabbitMQ refuses it.
        """
        at = time.monotonic()
        deadline = at + min(timeout, self._options.lookup_timeout)
        start = datetime.datetime.fromtimestamp(max(0.0, time.time() - seconds), tz=datetime.UTC)
        places: dict[int, tuple[int, int]] = {}
        with self._asked():
            for number in {partition_of(task_id, self._options.partitions) for task_id in task_ids}:
                partition = self._partitions[number]
                if partition.complete and partition.next_offset is not None:
                    continue  # all of it was read
                first = self._exclusively(partial(self._first_after, partition, start, deadline), deadline)
                if first is not None:
                    places[number] = first.offset, first.fingerprint
        return Ends(at, places)

    def _first_after(self, partition: Partition, start: datetime.datetime, deadline: float) -> StreamMessage | None:
        self._open(deadline)
        reader = Reader(self._wire, self._picker, partition.stream, start)
        reader.wait(min(deadline, time.monotonic() + _EMPTY))
        return next(iter(reader.stop()), None)

    def outcomes(self, keys: list[Key]) -> dict[Key, Record]:
        """Return what holds for tasks and groups, as :meth:`results` does; a tombstone for one that was forgotten."""
        return self._look_up(keys)

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._link.close(_LAST_STEP)

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone."""
        self._link.abandon()

    def _one(self, key: Key) -> Record | None:
        record = self._look_up([key]).get(key)
        self._warm()
        return record if record is not None and record.kind != FORGET else None

    def _look_up(
        self,
        keys: list[Key],
        max_age: float | None = None,
        timeout: float | None = None,
        since: Ends | None = None,
        pause: Callable[[], bool] | None = None,
    ) -> dict[Key, Record]:
        asked = time.monotonic()
        limit = self._options.lookup_timeout if timeout is None else min(timeout, self._options.lookup_timeout)
        fresh_since = asked if max_age is None else asked - max_age
        by_partition: dict[int, list[Key]] = {}
        for key in keys:
            by_partition.setdefault(partition_of(key[1], self._options.partitions), []).append(key)
        found: dict[Key, Record] = {}
        with self._asked():
            for number, members in sorted(by_partition.items()):
                found |= self._outcomes(self._partitions[number], members, fresh_since, asked + limit, since, pause)
        return found

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Make the thread that reads ahead wait."""
        with self._guard:
            self._asking += 1
            self._closed = False
        try:
            yield
        finally:
            with self._guard:
                self._asking -= 1

    def _outcomes(
        self,
        partition: Partition,
        keys: list[Key],
        fresh_since: float,
        deadline: float,
        since: Ends | None,
        pause: Callable[[], bool] | None,
    ) -> dict[Key, Record]:
        """Return what holds for ids of one partition."""
        wanted = RecordCollector(keys)
        if partition.read_at < fresh_since or not partition.reaches(since):
            catch_up = partial(self._catch_up, partition, fresh_since, deadline, wanted, pause, since)
            if not self._exclusively(catch_up, deadline):
                return {}
        found: dict[Key, Record] = {}
        left: Collection[Key] = keys
        while left:
            more = self._found(partition, left, deadline, wanted)
            # What has expired meanwhile may have hidden what has not.
            left = self._expired(partition, more, deadline)
            found |= {key: record for key, record in more.items() if key not in left}
        return found

    def _found(
        self, partition: Partition, keys: Collection[Key], deadline: float, wanted: RecordCollector
    ) -> dict[Key, Record]:
        """Return what holds for ids, as far as the index knows what is expired."""
        found, offsets = self._known(partition, keys, wanted)
        if any(offsets.values()):
            self._exclusively(partial(self._fetch, partition, offsets, deadline, wanted), deadline)
            more, offsets = self._known(partition, offsets, wanted)
            found |= more
        if offsets:
            self._exclusively(partial(self._read_again, partition, offsets, deadline, found), deadline)
        return found

    def _known(
        self, partition: Partition, keys: Collection[Key], wanted: RecordCollector
    ) -> tuple[dict[Key, Record], dict[Key, tuple[int, ...]]]:
        """Return the records that are at hand; of the others the offsets to be read, none when that is not known."""
        found: dict[Key, Record] = {}
        missing: dict[Key, tuple[int, ...]] = {}
        for key in keys:
            known = self.index.find(key, partition.number, wanted.records)
            if isinstance(known, KnownOutcome):
                if known.record is not None:
                    found[key] = known.record
            else:
                missing[key] = known.offsets if known is not None else ()
        return found, missing

    def _expired(self, partition: Partition, found: dict[Key, Record], deadline: float) -> set[Key]:
        """Return the ids whose record has turned out to be expired, and let the index forget such records.

        A record whose publisher alone says that it is expired is seen, unless the server says so as well: that clock
        may be wrong.
        """
        verdicts = {key: partition.ages.expired(it.offset, it.timestamp) for key, it in found.items()}
        if None in verdicts.values() and self._expires:
            if time.monotonic() - partition.asked_at > self._expires / _ASKED_PARTS:
                self._exclusively(partial(self._ask_horizon, partition, deadline), deadline)
            verdicts = {key: partition.ages.expired(it.offset, it.timestamp) for key, it in found.items()}
        self.index.expire(partition.number, partition.ages.horizon())
        return {key for key, expired in verdicts.items() if expired}

    def _exclusively(self, work: Callable[[], T], deadline: float) -> T:
        """Do something with the connection; once more when it turns out to be dead."""
        with self._link.turn(deadline - time.monotonic()):
            last = not self._link.connected
            while True:
                try:
                    with translated("reading results"), self._link.until(deadline):
                        return work()
                except ResultStoreUnreachableError:
                    self._link.close_in_background()
                    if last or time.monotonic() >= deadline:
                        raise
                    last = True
                except BaseException:
                    self._link.close_in_background()
                    raise

    def _prepared(self, connection: amqp.Connection) -> None:
        self._prepare(connection)
        self._wire = Wire(connection)
        self._channel = connection.channel()
        self._channel.basic_qos(0, PREFETCH, False)
        # Each consumer of this one gets a single record at a time.
        self._picker: amqp.Channel = connection.channel()
        self._picker.basic_qos(0, 1, False)
        self._readers: list[BlockReader] = []

    def _open(self, deadline: float) -> amqp.Channel:
        self._link.connection(deadline - time.monotonic())
        assert self._channel is not None  # noqa: S101 - made by _prepared
        return self._channel

    def _catch_up(
        self,
        partition: Partition,
        fresh_since: float,
        deadline: float,
        wanted: RecordCollector,
        pause: Callable[[], bool] | None = None,
        since: Ends | None = None,
        background: bool = False,
    ) -> bool:
        """Read everything that is new in a partition.

        Args:
            partition: which.
            fresh_since: not if another thread has read it since then, by the monotonic clock.
            deadline: by the monotonic clock.
            wanted: records to keep an eye on.
            pause: whether to stop early. What was read is not lost.
            since: what was stored before need not be read; None for all.
            background: whether no caller waits for it.

        Returns:
            Whether all of it was read; or it is empty and no caller waits for it.
        """
        if not partition.reaches(since):
            self._restart(partition)
        elif partition.read_at >= fresh_since:
            return True  # another thread has just done it
        begun = time.monotonic()
        channel = self._open(deadline)
        tail = self._tail(channel, partition, deadline, pause if background else None)
        if not tail:
            return not (pause is not None and pause())
        partition.weigh(tail)
        if partition.next_offset is not None and not self._goes_on(partition, tail, deadline):
            logger.info(
                "The last record that was read from %s is not there any more: it has expired, or the stream was cut or "
                "declared again. The stream is read from its beginning.",
                partition.stream,
            )
            self._restart(partition)
        if partition.next_offset is None:
            self._begin(partition, tail, deadline, since)
        end = tail[-1].offset + 1
        if not self._scan(partition, tail[0].offset, wanted, pause, background):
            return False
        first = partition.next_offset or 0
        places = Block(first, end - first)
        self._note(places, [delivery for delivery in tail if delivery.offset >= first], wanted)
        self._add(partition, places, tail[-1])
        partition.ages.mark(end, begun)
        self.index.expire(partition.number, partition.ages.horizon())
        partition.read_at = begun
        return True

    def _restart(self, partition: Partition) -> None:
        self.index.restart(partition.number)
        partition.restart()

    def _goes_on(self, partition: Partition, tail: list[StreamMessage], deadline: float) -> bool:
        """Return whether the last record that was read is still where it was.

        It is not after a power failure took the end of the stream, or when the stream was deleted and declared again:
        its offsets are given to other records then.
        """
        if partition.last is None:
            return True
        offset, fingerprint = partition.last
        if offset > tail[-1].offset:
            return False
        there = tail if offset >= tail[0].offset else [self._first_from(partition, offset, deadline)]
        return any((it.offset, it.fingerprint) == (offset, fingerprint) for it in there)

    def _note(self, places: Block, deliveries: Collection[StreamMessage], wanted: RecordCollector) -> None:
        for it in deliveries:
            places.put(it.offset, place(it.kind, it.subject, it.status, it.id))
            wanted.offer(it)

    def _add(self, partition: Partition, places: Block, last: StreamMessage | None) -> None:
        self.index.extend(partition.number, places)
        partition.next_offset = places.end
        if last is not None:
            partition.last = (last.offset, last.fingerprint)

    def _begin(self, partition: Partition, tail: list[StreamMessage], deadline: float, since: Ends | None) -> None:
        """Find the offset at which to begin to read."""
        first = self._at_end(partition, since, tail, deadline)
        if first is not None:
            partition.begin, partition.complete = first, False
        else:
            partition.begin, partition.complete = self._oldest(partition, tail, deadline), True
        partition.next_offset = min(partition.begin, tail[0].offset)

    def _oldest(self, partition: Partition, tail: list[StreamMessage], deadline: float) -> int:
        """Return the offset of the first record that is not expired."""
        if self._expires:
            # What this process itself saw to arrive is not hidden from it when its clock differs from the server's.
            self._at_end(partition, self._ends(), tail, deadline)
            self._ask_horizon(partition, deadline)
        horizon = partition.ages.horizon()
        if horizon >= tail[0].offset:
            return horizon
        return self._first_from(partition, horizon, deadline).offset

    def _at_end(
        self, partition: Partition, ends: Ends | None, tail: list[StreamMessage], deadline: float
    ) -> int | None:
        """Return the offset at which a partition ended at a time; None when that is not known, or not true any more."""
        place = ends.places.get(partition.number) if ends is not None else None
        if ends is None or place is None or place[0] > tail[-1].offset:
            return None
        first = self._first_from(partition, place[0], deadline)
        if first.offset == place[0] and first.fingerprint != place[1]:
            return None  # the stream was cut meanwhile, or deleted and declared again
        partition.ages.mark(place[0] + 1, ends.at)
        return first.offset

    def _first_from(self, partition: Partition, start: Any, deadline: float) -> StreamMessage:
        """Return the first record from a place on that is not behind the end."""
        reader = Reader(self._wire, self._picker, partition.stream, start)
        reader.wait(deadline)
        deliveries = reader.stop()
        if not deliveries:
            raise TimeoutError
        return deliveries[0]

    def _ask_horizon(self, partition: Partition, deadline: float) -> None:
        """Ask the server which record is the first that is not expired."""
        channel = self._open(deadline)
        expires = self._expires or 0.0
        at = time.monotonic() - expires
        start = datetime.datetime.fromtimestamp(max(0.0, time.time() - expires), tz=datetime.UTC)
        reader = Reader(self._wire, self._picker, partition.stream, start)
        reader.wait(min(deadline, time.monotonic() + _EMPTY))
        if not reader.waiting:
            # Everything is older, so the consumer stands behind the end: what is stored now is the first it gets.
            self._seed(channel, partition)
            reader.wait(deadline)
        deliveries = reader.stop()
        if not deliveries:
            raise TimeoutError
        partition.asked_at = time.monotonic()
        partition.ages.mark(deliveries[0].offset, at)

    def _scan(
        self,
        partition: Partition,
        stop: int,
        wanted: RecordCollector,
        pause: Callable[[], bool] | None = None,
        background: bool = False,
    ) -> bool:
        """Read a partition up to an offset.

        Returns:
            Whether all of it was read.
        """
        begin = partition.next_offset or 0
        for block, last in self._read_blocks(partition, Blocks([(begin, stop)], pause), wanted):
            self._add(partition, block, last)
        if not background:
            self._close_readers()
        return (partition.next_offset or 0) >= stop

    def _read_blocks(
        self, partition: Partition, blocks: Blocks, wanted: RecordCollector
    ) -> Iterator[tuple[Block, StreamMessage | None]]:
        """Read blocks of a partition, over several channels at the same time, and yield each in their order.

        Where records were not confirmed one by one, RabbitMQ 3.10 sends a consumer the rest of its chunk, whatever its
        prefetch count: up to 4096 records. Then one consumer at a time reads what is sent anyway.

        Args:
            partition: which.
            blocks: of it.
            wanted: records to keep an eye on.

        Yields:
            A block, and its last record.
        """
        unfinished: list[tuple[BlockReader, Block]] = []
        last: dict[Block, StreamMessage] = {}
        large: set[Block] = set()
        width, exhausted = _FIRST_READERS, False
        while True:
            for reader, block in unfinished:
                if reader.reads(block):
                    deliveries = reader.advance()
                    if not deliveries:
                        continue
                    partition.weigh(deliveries)
                    end = deliveries[-1].offset + 1
                    if end - block.end >= BLOCK // 2:
                        large.add(block)
                    blocks.extend(block, end)
                    inside = [delivery for delivery in deliveries if block.begin <= delivery.offset < block.end]
                    if inside:
                        self._note(block, inside, wanted)
                        last[block] = inside[-1]
            while unfinished and not unfinished[0][0].reads(unfinished[0][1]):
                _, done = unfinished.pop(0)
                width = 1 if done in large else min(READERS, 2 * width)
                yield done, last.pop(done, None)
            readers = self._some_readers(min(width, blocks.count + len(unfinished)))
            for reader in readers:
                if not exhausted and reader.free and sum(not each.free for each in readers) < width:
                    begun = blocks.next()
                    if begun is None:
                        exhausted = True
                    else:
                        reader.begin(partition.stream, begun, partition.prefetch)
                        unfinished.append((reader, begun))
            if not unfinished:
                return
            self._wire.wait()

    def _some_readers(self, count: int) -> list[BlockReader]:
        connection = self._link.connection()
        while len(self._readers) < min(count, READERS):
            self._readers.append(BlockReader(self._wire, connection.channel()))
        return self._readers

    def _close_readers(self) -> None:
        """Give RabbitMQ back what channels take there."""
        while self._readers:
            self._wire.close(self._readers.pop().channel)

    def _fetch(
        self, partition: Partition, offsets: dict[Key, tuple[int, ...]], deadline: float, wanted: RecordCollector
    ) -> None:
        """Read records that lie at known offsets."""
        self._open(deadline)
        single, runs = _runs(offset for several in offsets.values() for offset in several)
        if runs:
            for _ in self._read_blocks(partition, Blocks(runs), wanted):
                pass
            self._close_readers()
        while single:
            batch, single = single[:READERS], single[READERS:]
            readers = [(offset, Reader(self._wire, self._picker, partition.stream, offset)) for offset in batch]
            for offset, reader in readers:
                reader.wait(deadline)
                for delivery in reader.peek():
                    if delivery.offset == offset:
                        wanted.records[offset] = delivery.record()
                reader.cancel()
            for _, reader in readers:
                reader.stop()

    def _read_again(
        self, partition: Partition, keys: Collection[Key], deadline: float, found: dict[Key, Record]
    ) -> None:
        """Read all records of some ids, because the index has forgotten where they are."""
        channel = self._open(deadline)
        tail = self._tail(channel, partition, deadline)
        end = tail[-1]
        merged: dict[Key, Record | None] = dict.fromkeys(keys)
        begins: dict[Key, int] = {}
        seen = -1
        # The last record's own value lets it through the filter as well, so that the end is seen.
        only = {short_id(end.id) or end.kind, *(short_id(key[1]) for key in keys)}
        if len(only) > _FILTERED:
            only.clear()
        for delivery in itertools.chain(self._read_all(channel, partition, end.offset, deadline, only), tail):
            if delivery.offset > max(seen, partition.ages.horizon() - 1):
                seen = delivery.offset
                if delivery.key in merged:
                    merged[delivery.key] = outcome(merged[delivery.key], delivery.record())
                    begins.setdefault(delivery.key, seen)
        upto = end.offset + 1
        for key, record in merged.items():
            self.index.fold(key, record, begins.get(key, upto), upto, partition.number)
            if record is not None:
                found[key] = record

    def _tail(
        self,
        channel: amqp.Channel,
        partition: Partition,
        deadline: float,
        pause: Callable[[], bool] | None = None,
    ) -> list[StreamMessage]:
        """Return the last records of a partition; nothing confirmed before is behind them.

        At least one, unless ``pause`` is given: then no caller waits for it, and it may be empty.
        """
        reader = Reader(self._wire, channel, partition.stream, "last")
        if pause is not None:
            end = time.monotonic() + _EMPTY
            while not reader.waiting and time.monotonic() < end and not pause():
                reader.wait(time.monotonic() + _BREATH)
            if not reader.waiting:
                return reader.stop()
        elif partition.next_offset is None:
            reader.wait(min(deadline, time.monotonic() + _EMPTY))
            if not reader.waiting:
                self._seed(channel, partition)
        reader.wait(deadline)
        # The chunk was sent in one go, so all of it is here when the server answers the next method.
        deliveries = reader.stop()
        if len(deliveries) >= PREFETCH:
            # Unless the prefetch count cut it. Then each acknowledgement brings some more.
            reader = Reader(self._wire, channel, partition.stream, "last")
            reader.wait(deadline)
            deliveries = []
            while True:
                channel.basic_qos(0, PREFETCH, False)
                more = reader.take()
                deliveries += more
                if len(more) < PREFETCH or time.monotonic() >= deadline:
                    break
            deliveries += reader.stop()
        if not deliveries:
            raise TimeoutError
        return deliveries

    def _seed(self, channel: amqp.Channel, partition: Partition) -> None:
        # An empty stream delivers nothing, and there is no other way to learn that it is empty. A second seed, by
        # another process, does no harm.
        channel.basic_publish(
            Record("", SEED, subject=SEED).to_message(),
            RESULTS_EXCHANGE,
            partition.stream,
            confirm_timeout=self._options.confirm_timeout,
        )

    def _read_all(
        self, channel: amqp.Channel, partition: Partition, end: int, deadline: float, only: Collection[str]
    ) -> Iterator[StreamMessage]:
        """Yield what a filter lets through, and maybe more, from the oldest that is not expired to an offset."""
        reader = Reader(self._wire, channel, partition.stream, max(partition.begin, partition.ages.horizon()), only)
        offset = -1
        while offset < end:
            # Acknowledged in batches, but soon enough that RabbitMQ never runs out of credit.
            reader.wait(deadline, PREFETCH // 4, end)
            deliveries = reader.take()
            if not deliveries:
                raise ResultStoreUnreachableError(f"{partition.stream} was not read to its end in time.")
            offset = deliveries[-1].offset
            yield from deliveries
        yield from reader.stop()

    # Reading ahead.

    def _warm(self) -> None:
        """Read the other partitions in the background, once."""
        with self._guard:
            if self._warming is not None or runs_tasks():
                return
            self._warming = threading.Thread(target=self._read_ahead, name="celery-hybrid archive", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: the interpreter is about to end
                self._warming.start()

    def _read_ahead(self) -> None:
        try:
            for partition in self._partitions:
                while not self._closed and not self._when_idle(
                    partial(self._catch_up, partition, 0.0, background=True)
                ):
                    pass
            if not self._closed:
                deadline = time.monotonic() + self._options.lookup_timeout
                self._exclusively(self._close_readers, deadline)
        except ResultStoreError as exc:
            logger.debug("Reading ahead has ended: %s", exc)

    def _when_idle(self, read: Callable[[float, RecordCollector, Callable[[], bool]], bool]) -> bool:
        while self._asking and not self._closed:
            time.sleep(_BREATH)
        deadline = time.monotonic() + self._options.lookup_timeout
        return self._exclusively(partial(read, deadline, RecordCollector(), self._disturbed), deadline)

    def _disturbed(self) -> bool:
        return self._asking > 0 or self._closed

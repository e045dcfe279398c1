"""What one process remembers of the archive, within a bound of memory.

Of every record eight bytes: enough to tell which offset of a stream holds for an id. And whole records, as many as
the bound leaves room for: those that were asked for. What is not there is read again, at its offset.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from celery import states

from celery_hybrid.rabbitmq.records import FORGET, GROUP, RESULT, Record

Key = tuple[str, str]

#: Bytes that the place of one record takes.
PLACE_BYTES = 8

# The first byte of a place says what lies there, the other seven are of the hash of its key.
_NOTHING, _OTHER, _SUCCESS, _FORGET = range(4)
_PLACE = struct.Struct("<Q")
_HASH_BITS = 0xFFFFFFFFFFFFFF00

# Memory that a kept record takes beside itself: its key and its link.
_ENTRY_BYTES = 300

# Offsets that share a note about their age.
_STRETCH = 1024


def place(kind: str, subject: str, status: str, record_id: str) -> int:
    """Return what is remembered of a record: a number of 64 bits, 0 when it is none that is looked up."""
    if not record_id or subject not in (RESULT, GROUP):
        return _NOTHING
    flag = _OTHER
    if kind == FORGET:
        flag = _FORGET
    elif kind == RESULT and status == states.SUCCESS:
        flag = _SUCCESS
    # Python's own hash is different in each process, so nobody can choose ids that collide.
    return hash((subject, record_id)) & _HASH_BITS | flag


class Places:
    """The places of a stretch of one stream, in the order of their offsets.

    Args:
        begin: the first offset.
        count: how many.
    """

    def __init__(self, begin: int, count: int) -> None:
        self.begin = begin
        self.newest = 0
        self._data = bytearray(PLACE_BYTES * count)

    def put(self, offset: int, value: int, timestamp: int) -> None:
        """Set what lies at an offset."""
        _PLACE.pack_into(self._data, PLACE_BYTES * (offset - self.begin), value)
        if timestamp > self.newest:
            self.newest = timestamp

    @property
    def end(self) -> int:
        """The offset behind the last."""
        return self.begin + len(self._data) // PLACE_BYTES


class Ledger:
    """The places of one partition.

    Attributes:
        base: the first offset that is remembered.
        truncated: whether earlier ones were forgotten, to save memory.
    """

    def __init__(self) -> None:
        self.base = 0
        self.truncated = False
        self._data = bytearray()
        # (the offset behind them, the newest timestamp of them), to see when all of them are expired.
        self._stretches: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Memory in bytes, with what Python keeps in reserve."""
        return sys.getsizeof(self._data) + 150 * len(self._stretches)

    @property
    def end(self) -> int:
        """The offset behind the last."""
        return self.base + len(self._data) // PLACE_BYTES

    def extend(self, places: Places) -> None:
        """Add what comes next."""
        if not self._data:
            self.base = places.begin
        elif places.begin != self.end:
            raise ValueError(f"{places.begin} is not next after {self.end}")
        self._data += places._data
        newest = places.newest
        if self._stretches:
            begun = self._stretches[-2][0] if len(self._stretches) > 1 else self.base
            if places.end - begun <= _STRETCH:
                newest = max(newest, self._stretches.pop()[1])
        self._stretches.append((places.end, newest))

    def cut(self, offset: int) -> None:
        """Drop all before an offset."""
        offset = min(offset, self.end)
        if offset > self.base:
            del self._data[: PLACE_BYTES * (offset - self.base)]
            self.base = offset
            self._stretches = [stretch for stretch in self._stretches if stretch[0] > offset]

    def cut_older(self, timestamp: float) -> None:
        """Drop what lies before all records that are not older than that."""
        keep = 0
        while keep < len(self._stretches) and self._stretches[keep][1] < timestamp:
            keep += 1
        if keep:
            self.cut(self._stretches[keep - 1][0])
            # What was forgotten before is older still.
            self.truncated = False

    def of(self, key: Key, since: int) -> Iterator[tuple[int, int]]:
        """Yield (flag, offset) of everything that lies there for a key, which may be another of the same hash."""
        needle = _PLACE.pack(hash(key) & _HASH_BITS)[1:]
        data = self._data
        at = data.find(needle, PLACE_BYTES * max(0, since - self.base))
        while at >= 0:
            if at % PLACE_BYTES == 1 and data[at - 1]:
                yield data[at - 1], self.base + at // PLACE_BYTES
            at = data.find(needle, at + 1)


@dataclass(frozen=True)
class Known:
    """What holds for an id: a record, which may be a tombstone, or None when there is none."""

    record: Record | None


@dataclass(frozen=True)
class At:
    """What holds for an id lies at this offset."""

    offset: int


@dataclass(frozen=True)
class _Fold:
    """The outcome of all records of an id before an offset, after they were all read."""

    record: Record | None
    upto: int
    partition: int


class Index:
    """What is known of all partitions.

    Args:
        limit: bytes.
        partitions: how many.
    """

    def __init__(self, limit: int, partitions: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._ledgers = [Ledger() for _ in range(partitions)]
        # Records by (partition, offset), and outcomes by key; the least recently used first.
        self._kept: OrderedDict[tuple[int, int] | Key, Record | _Fold] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return self._kept_bytes + self._places_bytes()

    def _places_bytes(self) -> int:
        return sum(ledger.size for ledger in self._ledgers)

    def find(self, key: Key, partition: int) -> Known | At | None:
        """Return what holds for an id in a partition that was read to its end.

        Returns:
            None when that takes all records of the id.
        """
        with self._lock:
            ledger = self._ledgers[partition]
            since, kept, decided = ledger.base, None, not ledger.truncated
            fold = self._kept.get(key)
            if isinstance(fold, _Fold) and fold.upto >= ledger.base:
                self._kept.move_to_end(key)
                since, kept, decided = fold.upto, fold.record, True
            # As in records.outcome: the first SUCCESS stays, else the latest holds, and a tombstone hides them all.
            success = kept is not None and kept.kind == RESULT and kept.status == states.SUCCESS
            offset: int | None = None
            for flag, candidate in ledger.of(key, since):
                if flag == _FORGET:
                    offset, success, decided = candidate, False, True
                elif not success:
                    offset, success = candidate, flag == _SUCCESS
            if not decided:
                return None
            if offset is None:
                return Known(kept)
            record = self._kept.get((partition, offset))
            if not isinstance(record, Record):
                return At(offset)
            self._kept.move_to_end((partition, offset))
            # Of another key when the hashes collide.
            return Known(record) if record.key == key else None

    def extend(self, partition: int, places: Places) -> None:
        """Take in what lies next in a partition."""
        with self._lock:
            ledger = self._ledgers[partition]
            ledger.extend(places)
            if self._places_bytes() > self._limit * 3 // 4:
                longest = max(self._ledgers, key=lambda one: one.size)
                longest.cut(longest.base + max(1, (longest.end - longest.base) // 4))
                longest.truncated = True
            self._shrink()

    def keep(self, partition: int, record: Record) -> None:
        """Keep a record that is asked for."""
        with self._lock:
            self._put((partition, record.offset), record)

    def fold(self, key: Key, record: Record | None, upto: int, partition: int) -> None:
        """Set the outcome of all records of an id before an offset."""
        with self._lock:
            self._put(key, _Fold(record, upto, partition))

    def expire(self, partition: int, timestamp: float) -> None:
        """Forget records that are older than that."""
        with self._lock:
            self._ledgers[partition].cut_older(timestamp)

    def restart(self, partition: int) -> None:
        """Forget everything of a partition, because its stream was deleted and made anew."""
        with self._lock:
            self._ledgers[partition] = Ledger()
            for name, kept in list(self._kept.items()):
                if (kept.partition if isinstance(kept, _Fold) else name[0]) == partition:
                    self._drop(name)

    def _put(self, name: tuple[int, int] | Key, value: Record | _Fold) -> None:
        self._drop(name)
        self._kept[name] = value
        self._kept_bytes += _size(value)
        self._shrink()

    def _drop(self, name: tuple[int, int] | Key) -> None:
        value = self._kept.pop(name, None)
        if value is not None:
            self._kept_bytes -= _size(value)

    def _shrink(self) -> None:
        room = self._limit - self._places_bytes()
        while self._kept_bytes > room and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))


def _size(value: Record | _Fold) -> int:
    record = value.record if isinstance(value, _Fold) else value
    return _ENTRY_BYTES + (record.size if record is not None else 0)

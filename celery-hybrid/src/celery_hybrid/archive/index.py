"""What one process remembers of the archive, within a bound of memory.

Of every record eight bytes: enough to tell which offsets of a stream decide what holds for an id. And outcomes, as
many as the bound leaves room for: of ids that were asked for. What is not there is read again, at its offset.
"""

from __future__ import annotations

import functools
import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from celery import states

from celery_hybrid.rabbitmq.records import FORGET, GROUP, RESULT, Record, outcome

Key = tuple[str, str]

#: Bytes that the place of one record takes.
PLACE_BYTES = 8

# The first byte of a place says what lies there, the other seven are of the hash of its key.
_NOTHING, _OTHER, _SUCCESS, _FORGET = range(4)
_PLACE = struct.Struct("<Q")
_HASH_BITS = 0xFFFFFFFFFFFFFF00

# Memory that a kept outcome takes beside its record: its key and its link.
_ENTRY_BYTES = 300


def place(kind: str, subject: str, status: str, record_id: str) -> int:
    """Return what is remembered of a record: a number of 64 bits, 0 when it is none that is looked up."""
    if not record_id or subject not in (RESULT, GROUP):
        return _NOTHING
    flag = _OTHER
    if kind == FORGET:
        flag = _FORGET
    elif kind == RESULT and status == states.SUCCESS:
        flag = _SUCCESS
    # Python's own hash is different in each process, so ids that collide cannot be chosen.
    return hash((subject, record_id)) & _HASH_BITS | flag


class Block:
    """The places of a stretch of one stream, in the order of their offsets.

    Args:
        begin: the first offset.
        count: how many.
    """

    def __init__(self, begin: int, count: int) -> None:
        self.begin = begin
        self._data = bytearray(PLACE_BYTES * count)

    def put(self, offset: int, value: int) -> None:
        """Set what lies at an offset."""
        _PLACE.pack_into(self._data, PLACE_BYTES * (offset - self.begin), value)

    def grow(self, end: int) -> None:
        """Reach up to an offset."""
        self._data += bytes(PLACE_BYTES * max(0, end - self.end))

    @property
    def end(self) -> int:
        """The offset behind the last."""
        return self.begin + len(self._data) // PLACE_BYTES


class PartitionIndex:
    """The places of one partition.

    Attributes:
        base: the first offset that is remembered.
        horizon: what lies before this offset is expired.
        truncated: whether some that are not expired were forgotten, to save memory.
    """

    def __init__(self) -> None:
        self.base = 0
        self.horizon = 0
        self.truncated = False
        self._data = bytearray()

    @property
    def size(self) -> int:
        """Memory in bytes, with what Python keeps in reserve."""
        return sys.getsizeof(self._data)

    @property
    def end(self) -> int:
        """The offset behind the last."""
        return self.base + len(self._data) // PLACE_BYTES

    def extend(self, places: Block) -> None:
        """Add what comes next."""
        if not self._data:
            self.base = places.begin
        elif places.begin != self.end:
            raise ValueError(f"{places.begin} is not next after {self.end}")
        self._data += places._data

    def cut(self, offset: int) -> None:
        """Drop all before an offset."""
        offset = min(offset, self.end)
        if offset > self.base:
            del self._data[: PLACE_BYTES * (offset - self.base)]
            self.base = offset

    def expire(self, offset: int) -> None:
        """Drop what lies before an offset, because it is expired."""
        self.horizon = max(self.horizon, offset)
        self.cut(self.horizon)
        if self.horizon >= self.base:
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
class KnownOutcome:
    """What holds for an id: a record, which may be a tombstone, or None when there is none."""

    record: Record | None


@dataclass(frozen=True)
class DecidingOffsets:
    """What holds for an id follows from the records at these offsets."""

    offsets: tuple[int, ...]


@dataclass(frozen=True)
class _Fold:
    """The outcome of the records of an id in a stretch of a partition, behind whose end there may be others.

    Attributes:
        record: the outcome.
        begin: offset of the first record that it comes from.
        upto: the end of the stretch.
        partition: its number.
        whole: whether it comes from all records of the stretch; not only from the first SUCCESS, which hides the others
            but says nothing of their runs.
    """

    record: Record | None
    begin: int
    upto: int
    partition: int
    whole: bool = True

    def holds(self, partition: int, positions: PartitionIndex) -> bool:
        """Return whether it can be carried on: no record of it is expired, and none behind it is forgotten."""
        return self.partition == partition and self.begin >= positions.horizon and self.upto >= positions.base


class Index:
    """What is known of all partitions.

    Args:
        limit: bytes.
        partitions: how many.
    """

    def __init__(self, limit: int, partitions: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._partitions = [PartitionIndex() for _ in range(partitions)]
        # Outcomes by key; the least recently used first.
        self._kept: OrderedDict[Key, _Fold] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return self._kept_bytes + self._places_bytes()

    def _places_bytes(self) -> int:
        return sum(positions.size for positions in self._partitions)

    def find(
        self, key: Key, partition: int, records: Mapping[int, Record] | None = None
    ) -> KnownOutcome | DecidingOffsets | None:
        """Return what holds for an id in a partition that was read to its end.

        Args:
            key: kind and id.
            partition: its number.
            records: what was read of the partition lately, by offset. The outcome is kept.

        Returns:
            None when that takes all records of the id.
        """
        records = records or {}
        with self._lock:
            positions = self._partitions[partition]
            fold = self._kept.get(key)
            if fold is not None and not fold.holds(partition, positions):
                fold = None
            places = self._places(positions, key, fold, records)
            if fold is not None and not fold.whole and not positions.truncated and _forgets(places):
                fold = None
                places = self._places(positions, key, fold, records)
            kept = fold.record if fold is not None else None
            deciding = _deciding(places, kept, fold is not None or not positions.truncated)
            if deciding is None:
                return None
            if not all(offset in records for offset in deciding):
                return DecidingOffsets(tuple(deciding))
            if fold is not None:
                self._kept.move_to_end(key)
            if not deciding:
                return KnownOutcome(kept)
            held = functools.reduce(outcome, (records[offset] for offset in deciding), kept)
            begin, whole = (fold.begin, fold.whole) if fold is not None else (deciding[0], True)
            whole = whole and len(deciding) == len(places)
            self._put(key, _Fold(held, begin, positions.end, partition, whole))
            return KnownOutcome(held)

    @staticmethod
    def _places(
        positions: PartitionIndex, key: Key, fold: _Fold | None, records: Mapping[int, Record]
    ) -> list[tuple[int, int]]:
        """Return flag and offset of each record of a key behind what was folded already."""
        return [
            (flag, offset)
            for flag, offset in positions.of(key, fold.upto if fold is not None else positions.base)
            # Another key may have the same hash.
            if offset not in records or records[offset].key == key
        ]

    def extend(self, partition: int, places: Block) -> None:
        """Take in what lies next in a partition."""
        with self._lock:
            positions = self._partitions[partition]
            positions.extend(places)
            if self._places_bytes() > self._limit * 3 // 4:
                longest = max(self._partitions, key=lambda one: one.size)
                longest.cut(longest.base + max(1, (longest.end - longest.base) // 4))
                longest.truncated = True
            self._shrink()

    def fold(self, key: Key, record: Record | None, begin: int, upto: int, partition: int) -> None:
        """Set the outcome of all records of an id before an offset.

        Args:
            key: kind and id.
            record: the outcome.
            begin: offset of the first record that it comes from; ``upto`` when there is none.
            upto: the offset.
            partition: its number.
        """
        with self._lock:
            self._put(key, _Fold(record, begin, upto, partition))

    def expire(self, partition: int, offset: int) -> None:
        """Forget what lies before an offset, because it is expired."""
        with self._lock:
            self._partitions[partition].expire(offset)

    def restart(self, partition: int) -> None:
        """Forget everything of a partition, because its stream was cut, or deleted and declared again."""
        with self._lock:
            self._partitions[partition] = PartitionIndex()
            for key, fold in list(self._kept.items()):
                if fold.partition == partition:
                    self._drop(key)

    def _put(self, key: Key, fold: _Fold) -> None:
        self._drop(key)
        self._kept[key] = fold
        self._kept_bytes += _size(fold)
        self._shrink()

    def _drop(self, key: Key) -> None:
        fold = self._kept.pop(key, None)
        if fold is not None:
            self._kept_bytes -= _size(fold)

    def _shrink(self) -> None:
        room = self._limit - self._places_bytes()
        while self._kept_bytes > room and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))


def _deciding(places: list[tuple[int, int]], kept: Record | None, complete: bool) -> list[int] | None:
    """Return the offsets of those records that decide, by the rule of :func:`outcome`, without reading the others.

    Args:
        places: flag and offset of each record behind ``kept``.
        kept: the outcome of what came before.
        complete: whether that is known.

    Returns:
        None when it takes records that are not among them.
    """
    if not complete:
        # A tombstone hides what is not known.
        return [places[-1][1]] if places and places[-1][0] == _FORGET else None
    if _forgets(places) or (kept is not None and kept.kind == FORGET):
        return [offset for _, offset in places]
    if kept is not None and kept.status == states.SUCCESS:
        return []
    first_success = [offset for flag, offset in places if flag == _SUCCESS][:1]
    return first_success or [offset for _, offset in places]


def _forgets(places: list[tuple[int, int]]) -> bool:
    return any(flag == _FORGET for flag, _ in places)


def _size(fold: _Fold) -> int:
    return _ENTRY_BYTES + (fold.record.size if fold.record is not None else 0)

"""What one process remembers of the archive, within a bound of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from celery_hybrid.records import FORGET, Record, outcome

Key = tuple[str, str]

# Memory that an entry takes beside its record: key, link and entry.
_ENTRY_BYTES = 300


@dataclass(frozen=True)
class Entry:
    """What is known of one id.

    Attributes:
        record: the outcome of its records, None when there are none.
        partition: where it is.
        whole: whether all its records were taken into account.
    """

    record: Record | None
    partition: int
    whole: bool

    @property
    def size(self) -> int:
        """Memory that it takes, in bytes."""
        return _ENTRY_BYTES + (self.record.size if self.record is not None else 0)


class Evicted:
    """Which ids were forgotten: a Bloom filter of fixed size, so it never says no to one that was.

    With 2**23 bits and four hashes, 500,000 forgotten ids give some 0.2 % of false alarms, a million 2.4 %.
    A false alarm costs a scan of one partition, nothing else.
    """

    BITS = 1 << 23

    def __init__(self) -> None:
        self._bits: bytearray | None = None

    def add(self, key: Key) -> None:
        """Note an id."""
        if self._bits is None:
            self._bits = bytearray(self.BITS // 8)
        for position in self._positions(key):
            self._bits[position >> 3] |= 1 << (position & 7)

    def __contains__(self, key: Key) -> bool:
        bits = self._bits
        return bits is not None and all(bits[place >> 3] & (1 << (place & 7)) for place in self._positions(key))

    def _positions(self, key: Key) -> list[int]:
        # Double hashing with the two halves of Python's own 64 bits.
        value = hash(key) & 0xFFFFFFFFFFFFFFFF
        first, second = value >> 32, (value & 0xFFFFFFFF) | 1
        return [(first + step * second) % self.BITS for step in range(4)]


class Index:
    """Outcomes by id. The least recently used are forgotten when they take more memory than allowed.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._evicted = Evicted()
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Memory that the entries take, in bytes."""
        return self._size

    def get(self, key: Key, partition: int) -> Entry | None:
        """Return what is known of an id whose partition was read to its end, or None when that is not enough."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry if entry.whole else None
            return None if key in self._evicted else Entry(None, partition, whole=True)

    def add(self, record: Record, partition: int) -> None:
        """Take in a record that came behind all those of its partition that were added before."""
        with self._lock:
            entry = self._entries.pop(record.key, None)
            if entry is not None:
                self._size -= entry.size
                merged, whole = outcome(entry.record, record), entry.whole
            else:
                merged, whole = record, record.key not in self._evicted
            # A tombstone hides whatever was forgotten.
            self._put(record.key, Entry(merged, partition, whole or record.kind == FORGET))

    def replace(self, key: Key, record: Record | None, partition: int) -> None:
        """Set what is known of an id after all its records were read again."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._size -= entry.size
            self._put(key, Entry(record, partition, whole=True))

    def forget_partition(self, partition: int) -> None:
        """Forget everything of a partition, because its stream was deleted and made anew."""
        with self._lock:
            for key in [key for key, entry in self._entries.items() if entry.partition == partition]:
                self._size -= self._entries.pop(key).size

    def _put(self, key: Key, entry: Entry) -> None:
        self._entries[key] = entry
        self._size += entry.size
        while self._size > self._limit and len(self._entries) > 1:
            old, forgotten = self._entries.popitem(last=False)
            self._size -= forgotten.size
            self._evicted.add(old)

"""Memory in which the children of a prefork pool count for their worker.

A child has a row of its own, by its place in the pool, and is the only one to write there; the main process adds the
rows up. A child that takes the place of one that ended goes on with its row, so the sums only grow. Nothing is locked,
written to a disk, or left behind.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from billiard.process import current_process

#: Upper bounds of the buckets of a result's latency, in seconds.
STORE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Rows: the main process, and as many children. Those beyond are not counted.
ROWS = 1025

_SUM, _FIRST_BUCKET = 0, 1
_FAILED = _FIRST_BUCKET + len(STORE_BUCKETS) + 1
_WIDTH = _FAILED + 1


class Table:
    """Numbers of all processes of a worker. It is made before they are."""

    def __init__(self) -> None:
        # Anonymous and shared (MAP_SHARED), so children inherit it; pages that are never written take no memory.
        self._memory = mmap.mmap(-1, ROWS * _WIDTH * 8)
        self._numbers = memoryview(self._memory).cast("d")
        # Threads of one process; children begin with a new one.
        self._lock = threading.Lock()
        self._row = 0

    def enter(self, index: int | None) -> None:
        """Take the row of a child.

        Args:
            index: its place in the pool, from 0; None for the main process.
        """
        self._lock = threading.Lock()
        self._row = 0 if index is None else index + 1

    def stored(self, seconds: float, failed: bool = False) -> None:
        """Count a result that was stored, or could not be."""
        if self._row >= ROWS:
            return
        start, numbers = self._row * _WIDTH, self._numbers
        with self._lock:
            if failed:
                numbers[start + _FAILED] += 1
                return
            numbers[start + _SUM] += seconds
            numbers[start + _FIRST_BUCKET + bisect_left(STORE_BUCKETS, seconds)] += 1

    def sums(self) -> list[float]:
        """Return the sum of seconds, the counts in each bucket and above, and the number of failures."""
        totals = [0.0] * _WIDTH
        for row in range(ROWS):
            values = self._numbers[row * _WIDTH : (row + 1) * _WIDTH].tolist()
            if any(values):
                totals = [a + b for a, b in zip(totals, values, strict=True)]
        return totals


class _Process:
    table: Table | None = None


def begin() -> Table:
    """Make the table of this worker; its children find it."""
    _Process.table = Table()
    return _Process.table


def child_begins(**_: Any) -> None:
    """Take, in a child, its own row; a receiver of ``worker_process_init``."""
    if _Process.table is not None:
        _Process.table.enter(getattr(current_process(), "index", None))


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Measure how long it takes to store a result; does nothing where no metrics are served."""
    table = _Process.table
    if table is None:
        yield
        return
    began = time.monotonic()
    try:
        yield
    except BaseException:
        table.stored(0.0, failed=True)
        raise
    table.stored(time.monotonic() - began)

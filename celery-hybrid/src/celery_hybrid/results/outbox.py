"""The outbox: records that RabbitMQ has not taken yet, in a file of this host.

All processes of the workers on a host share it. It is their circuit breaker as well: as long as one record waits in
it, every process appends behind that one and leaves RabbitMQ alone, so the order is kept and one process (see
:mod:`celery_hybrid.results.relay`) does all the probing.

SQLite in WAL mode with ``synchronous=FULL``: what :meth:`Outbox.add` returned for survives a crash of the process and
of the host (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from celery_hybrid.errors import OutboxError
from celery_hybrid.rabbitmq.records import Record

logger = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0
# SQLite needs room to remove records as well.
_FREE_BYTES = 16 * 1024 * 1024
_VERSION = 1
# In quotes: one of the names is a keyword of SQL.
_COLUMNS = tuple(f'"{field.name}"' for field in fields(Record) if field.name != "offset")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, reply_to TEXT, size INTEGER NOT NULL, {", ".join(_COLUMNS)}
);
CREATE TABLE IF NOT EXISTS refused (
    seq INTEGER PRIMARY KEY, reason TEXT NOT NULL, reply_to TEXT, size INTEGER NOT NULL, {", ".join(_COLUMNS)}
);
CREATE TABLE IF NOT EXISTS totals (count INTEGER NOT NULL, size INTEGER NOT NULL, dropped INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON records
    BEGIN UPDATE totals SET count = count + 1, size = size + new.size; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON records
    BEGIN UPDATE totals SET count = count - 1, size = size - old.size; END;
"""  # noqa: S608 - names of columns only

# A connection that a fork has inherited must neither be used nor closed: closing would clean up the parent's files.
_inherited: list[sqlite3.Connection] = []


@dataclass(frozen=True)
class Waiting:
    """A record in the outbox.

    Attributes:
        seq: its place in the order.
        record: the record, exactly as it was to be published.
        reply_to: address of the client that waits for it.
    """

    seq: int
    record: Record
    reply_to: str | None


@dataclass(frozen=True)
class Depth:
    """How full the outbox is.

    Attributes:
        count: records that wait.
        size: their bytes.
        oldest: seconds since the epoch when the oldest was stored; None when nothing waits.
        refused: records that RabbitMQ will never take, kept for a person to look at.
        dropped: records that were dropped because the outbox was full, ever.
    """

    count: int
    size: int
    oldest: int | None
    refused: int
    dropped: int


class NobodyWaitsError(OutboxError):
    """There is nothing to wait behind."""


class FullError(OutboxError):
    """There is no room for another record."""


class Outbox:
    """Keeps records in the order in which they came.

    Args:
        path: of the SQLite file. Its directory is made, for this user alone, if it is missing.
        max_records: bound of the number of records.
        max_bytes: bound of their bytes.
    """

    #: Part of the bounds that only the main process of a worker may use, which must never wait.
    RESERVE = 0.1

    def __init__(self, path: Path, max_records: int, max_bytes: int) -> None:
        self.path = path
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None

    def waiting(self) -> bool:
        """Tell whether anything waits; microseconds.

        Raises:
            OutboxError: the file cannot be read.
        """
        with self._use() as database:
            return database.execute("SELECT 1 FROM records LIMIT 1").fetchone() is not None

    def add(self, record: Record, reply_to: str | None, reserve: bool = False, behind: bool = False) -> None:
        """Append a record; it is on the disk when this returns.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.
            reserve: whether it may use the reserve.
            behind: only if others wait.

        Raises:
            NobodyWaitsError: nobody does.
            FullError: there is no room.
            OutboxError: the file cannot be written.
        """
        share = 1.0 if reserve else 1.0 - self.RESERVE
        free = self._free()
        if free < _FREE_BYTES:
            raise FullError(f"the outbox {self.path} is on a file system with only {free} bytes left")
        with self._change() as database:
            count, size = database.execute("SELECT count, size FROM totals").fetchone()
            if behind and not count:
                raise NobodyWaitsError(f"the outbox {self.path} is empty")
            if count and (count + 1 > self._max_records * share or size + record.size > self._max_bytes * share):
                raise FullError(f"the outbox {self.path} is full: it holds {count} results, {size} bytes")
            database.execute(
                f"INSERT INTO records (reply_to, size, {', '.join(_COLUMNS)}) "  # noqa: S608 - no value in it
                f"VALUES (?, ?{', ?' * len(_COLUMNS)})",
                (reply_to, record.size, *astuple(record)[: len(_COLUMNS)]),
            )

    def oldest(self, limit: int, after: int = -1) -> list[Waiting]:
        """Return the records that came first behind a place in the order, at most so many."""
        with self._use() as database:
            rows = database.execute(
                f"SELECT seq, reply_to, {', '.join(_COLUMNS)} FROM records WHERE seq > ? "  # noqa: S608
                "ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
        return [Waiting(seq, Record(*values), reply_to) for seq, reply_to, *values in rows]

    def remove(self, last: int) -> None:
        """Remove everything up to and with a place in the order."""
        with self._change() as database:
            database.execute("DELETE FROM records WHERE seq <= ?", (last,))

    def set_aside(self, seq: int, reason: str) -> None:
        """Move a record out of the way of those behind it, and keep it."""
        columns = f"reply_to, size, {', '.join(_COLUMNS)}"
        with self._change() as database:
            database.execute(
                f"INSERT INTO refused (seq, reason, {columns}) SELECT seq, ?, {columns} "  # noqa: S608
                "FROM records WHERE seq = ?",
                (reason, seq),
            )
            database.execute("DELETE FROM records WHERE seq = ?", (seq,))

    def drop_oldest(self, size: int) -> list[str]:
        """Make room for a record of that size; return the ids of those that were dropped for it."""
        dropped: list[str] = []
        with self._change() as database:
            share = 1.0 - self.RESERVE
            while True:
                count, held = database.execute("SELECT count, size FROM totals").fetchone()
                if not count or (count + 1 <= self._max_records * share and held + size <= self._max_bytes * share):
                    break
                seq, name = database.execute("SELECT seq, id FROM records ORDER BY seq LIMIT 1").fetchone()
                database.execute("DELETE FROM records WHERE seq = ?", (seq,))
                dropped.append(name)
            database.execute("UPDATE totals SET dropped = dropped + ?", (len(dropped),))
        return dropped

    def depth(self) -> Depth:
        """Return how full it is."""
        with self._use() as database:
            count, size, dropped = database.execute("SELECT count, size, dropped FROM totals").fetchone()
            first = database.execute("SELECT timestamp FROM records ORDER BY seq LIMIT 1").fetchone()
            (refused,) = database.execute("SELECT count(*) FROM refused").fetchone()
        return Depth(count, size, first[0] if first else None, refused, dropped)

    def shrink(self) -> None:
        """Give the space of what was removed back to the file system."""
        with self._use() as database:
            # As a script: execute() frees a single page.
            database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    def hold(self) -> None:
        """Before a fork: let no thread be inside of SQLite, whose own locks a child would inherit for ever."""
        self._lock.acquire()

    def release(self) -> None:
        """After a fork, in the parent."""
        self._lock.release()

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone."""
        if self._database is not None:
            _inherited.append(self._database)
        self._database = None
        self._lock = threading.RLock()

    def _free(self) -> int:
        folder = next(each for each in self.path.parents if each.exists())
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._database is None:
                    self._database = self._open()
                yield self._database
            except (sqlite3.Error, OSError) as exc:
                database, self._database = self._database, None
                if database is not None:
                    with contextlib.suppress(sqlite3.Error):
                        database.close()
                raise OutboxError(f"the outbox {self.path} cannot be used: {exc}") from exc

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._use() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its other files the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            return self._connect()
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):
                raise
            aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
            logger.critical("The outbox %s is damaged (%s). It is kept as %s; a new one begins.", self.path, exc, aside)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous=FULL")
            # Nothing is written to one that is complete: it must be read when the disk is full, too.
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                database.execute("PRAGMA auto_vacuum=INCREMENTAL")
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        except BaseException:
            database.close()
            raise
        return database

"""The outbox: records that RabbitMQ has not taken yet, in a file of this host.

All processes of the workers on a host share it. It is their circuit breaker as well: as long as one record waits in
it, every process appends behind that one and leaves RabbitMQ alone, so the order is kept and one process (see
:mod:`celery_hybrid.delivery.relay`) does all the probing.

SQLite in WAL mode with ``synchronous=FULL``: what :meth:`Outbox.add` returned for survives a crash of the process and
of the host (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from celery_hybrid.delivery.progress import DeliveryProgress
from celery_hybrid.errors import OutboxError
from celery_hybrid.rabbitmq.records import Record
from celery_hybrid.terminal import counted

logger = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0
# What others on the file system are left.
_FREE_BYTES = 16 * 1024 * 1024
# SQLite needs room to remove records as well: on a full disk this file is given up for that moment.
_BALLAST_BYTES = 1024 * 1024
_VERSION = 2
# In quotes: one of the names is a keyword of SQL.
_COLUMNS = tuple(f'"{field.name}"' for field in fields(Record) if field.name != "offset")
# What version 1 did not have. Workers of both versions may use the file while a release is rolled out: what the old
# one adds gets these values, and it ignores the columns.
_ADDED = {"run": "INTEGER NOT NULL DEFAULT 0", "retries": "INTEGER NOT NULL DEFAULT -1"}
_FIRST_COLUMNS = tuple(name for name in _COLUMNS if name.strip('"') not in _ADDED)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, reply_to TEXT, size INTEGER NOT NULL, {", ".join(_FIRST_COLUMNS)}
);
CREATE TABLE IF NOT EXISTS refused (
    seq INTEGER PRIMARY KEY, reason TEXT NOT NULL, reply_to TEXT, size INTEGER NOT NULL, {", ".join(_FIRST_COLUMNS)}
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


@dataclass(frozen=True)
class Refused:
    """A record that was set aside.

    Attributes:
        seq: its name in this outbox.
        reason: why RabbitMQ will never take it.
        record: the record, exactly as it was to be published.
        reply_to: address of the client that waits for it.
    """

    seq: int
    reason: str
    record: Record
    reply_to: str | None


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
        what: the records are, for the log.
    """

    #: Part of the bounds that only the main process of a worker may use, which must never wait.
    RESERVE = 0.1

    def __init__(self, path: Path, max_records: int, max_bytes: int, what: str = "results") -> None:
        self.path = path
        self.what = what
        #: Lock and place of the one process of the host that delivers.
        self.progress = DeliveryProgress(Path(f"{path}.lock"))
        self._ballast = Path(f"{path}.ballast")
        # Tells this file from another that takes its place.
        self._identity = ""
        self._opened: tuple[int, int] | None = None
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None

    def waiting(self) -> bool:
        """Return whether anything waits to be delivered; microseconds.

        Raises:
            OutboxError: the file cannot be read.
        """
        with self._use() as database:
            (last,) = database.execute("SELECT max(seq) FROM records").fetchone()
            return last is not None and last > self.delivered()

    def holds(self) -> bool:
        """Return whether anything is in it: what waits, or what was delivered and could not be removed."""
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
                raise FullError(
                    f"the outbox {self.path} is full: it holds {counted(count, self.what)}, {counted(size, 'bytes')}"
                )
            _insert(database, None, record, reply_to)

    def oldest(self, limit: int, size: int | None = None) -> list[Waiting]:
        """Return the records that came first and are not delivered yet, at least one when there is any.

        Args:
            limit: so many at most.
            size: so many bytes at most.
        """
        found: list[Waiting] = []
        with self._use() as database:
            rows = database.execute(
                f"SELECT size, seq, reply_to, {', '.join(_COLUMNS)} FROM records WHERE seq > ? "  # noqa: S608
                "ORDER BY seq LIMIT ?",
                (self.delivered(), limit),
            )
            for its_size, seq, reply_to, *values in rows:
                if size is not None:
                    size -= its_size
                    if found and size < 0:
                        break
                found.append(Waiting(seq, Record(*values), reply_to))
            rows.close()
        return found

    def remove(self, last: int) -> None:
        """Remove what was delivered: everything up to and with a place in the order.

        Raises:
            OutboxError: it could not be removed.
        """
        self._change_even_if_full(lambda database: database.execute("DELETE FROM records WHERE seq <= ?", (last,)))
        if self.delivered() >= 0:
            self.remember(-1)

    def remember(self, last: int) -> None:
        """Take what cannot be removed for delivered all the same, up to a place in the order; -1 forgets that.

        Only for the process that holds the lock of :attr:`progress`.
        """
        self.progress.remember(self._identity, last)

    def delivered(self) -> int:
        """Return the place up to which all is delivered although it could not be removed, -1 if there is none."""
        return self.progress.delivered(self._identity)

    def set_aside(self, seq: int, reason: str, instead: Record | None = None) -> None:
        """Move a record out of the way of those behind it, and keep it.

        Args:
            seq: its place in the order.
            reason: why it can never be delivered.
            instead: takes its place, for waiting clients; once.
        """
        columns = f"reply_to, size, {', '.join(_COLUMNS)}"

        def change(database: sqlite3.Connection) -> None:
            kept = database.execute(
                f"INSERT OR IGNORE INTO refused (seq, reason, {columns}) SELECT seq, ?, {columns} "  # noqa: S608
                "FROM records WHERE seq = ?",
                (reason, seq),
            )
            (reply_to,) = database.execute("SELECT reply_to FROM records WHERE seq = ?", (seq,)).fetchone()
            database.execute("DELETE FROM records WHERE seq = ?", (seq,))
            if instead is not None and kept.rowcount:
                _insert(database, seq, instead, reply_to)

        self._change_even_if_full(change)

    def refused(self) -> Iterator[Refused]:
        """Yield what was set aside, the oldest first."""
        with self._use() as database:
            names = [seq for (seq,) in database.execute("SELECT seq FROM refused ORDER BY seq")]
        for seq in names:
            with self._use() as database:
                row = database.execute(
                    f"SELECT reason, reply_to, {', '.join(_COLUMNS)} FROM refused WHERE seq = ?",  # noqa: S608
                    (seq,),
                ).fetchone()
            if row is not None:
                reason, reply_to, *values = row
                yield Refused(seq, reason, Record(*values), reply_to)

    def take_back(self, seq: int) -> None:
        """Let a record that was set aside wait for RabbitMQ again, behind all others."""
        columns = f"reply_to, size, {', '.join(_COLUMNS)}"
        with self._change() as database:
            database.execute(
                f"INSERT INTO records ({columns}) SELECT {columns} FROM refused WHERE seq = ?",  # noqa: S608
                (seq,),
            )
            database.execute("DELETE FROM refused WHERE seq = ?", (seq,))

    def discard(self, seq: int) -> None:
        """Delete a record that was set aside."""
        self._change_even_if_full(lambda database: database.execute("DELETE FROM refused WHERE seq = ?", (seq,)))

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
            delivered = self.delivered()
            if delivered >= 0:
                count, size, oldest = database.execute(
                    "SELECT count(*), coalesce(sum(size), 0), min(timestamp) FROM records WHERE seq > ?", (delivered,)
                ).fetchone()
                first = (oldest,)
        return Depth(count, size, first[0] if first else None, refused, dropped)

    def shrink(self) -> None:
        """Give the space of what was removed back to the file system."""
        with self._use() as database:
            # As a script: execute() frees a single page.
            database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
        self._take_ballast()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    def hold(self) -> None:
        """Before a fork: let no thread be inside of SQLite, whose own locks a child would inherit indefinitely."""
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
        self.progress.abandon()

    def _free(self) -> int:
        folder = next(each for each in self.path.parents if each.exists())
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._notice_another_file()
                if self._database is None:
                    self._database = self._open()
                yield self._database
            except (sqlite3.Error, OSError) as exc:
                self._leave()
                raise OutboxError(f"the outbox {self.path} cannot be used: {exc}") from exc

    def _leave(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def _notice_another_file(self) -> None:
        """Leave a file that was deleted or replaced: no other process would ever see what is written to it."""
        if self._database is None or _file_at(self.path) == self._opened:
            return
        held = "an unknown number of"
        with contextlib.suppress(sqlite3.Error):
            (held,) = self._database.execute("SELECT count(*) FROM records").fetchone()
        logger.error(
            "The outbox %s was deleted or replaced while it was in use. It held %s %s that RabbitMQ had not accepted. "
            "They are lost unless that file is brought back; stop the workers for it. What is at that path now is "
            "used.",
            *(self.path, held, self.what),
        )
        self._leave()

    def _change_even_if_full(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Change something that needs little room; on a full disk in that of the ballast."""
        try:
            with self._change() as database:
                change(database)
        except OutboxError:
            if not self._ballast.exists():
                raise
            with contextlib.suppress(OSError):
                self._ballast.unlink()
            try:
                with self._change() as database:
                    change(database)
                self.shrink()
            finally:
                self._take_ballast()

    def _take_ballast(self) -> None:
        """Reserve room for changes on a full disk, if there is any."""
        with contextlib.suppress(OSError):
            file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size < _BALLAST_BYTES:
                    os.posix_fallocate(file, 0, _BALLAST_BYTES)
            finally:
                os.close(file)

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
        opened = _file_at(self.path)
        try:
            return self._connect()
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):
                raise
            if _file_at(self.path) == opened:
                self._keep_damaged(exc)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return self._connect()

    def _keep_damaged(self, exc: Exception) -> None:
        # Other processes that have it open notice that another file is in its place.
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        logger.critical("The outbox %s is damaged (%s). It is kept as %s; a new one begins.", self.path, exc, aside)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")

    def _connect(self) -> sqlite3.Connection:
        opened = _file_at(self.path)
        database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous=FULL")
            # Nothing is written to one that is complete: it must be read when the disk is full, too.
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                database.execute("PRAGMA auto_vacuum=INCREMENTAL")
                database.execute("PRAGMA journal_mode=WAL")
                # The name tells this file from one that takes its place, whose records have the same numbers.
                name = "" if version else f"PRAGMA application_id={secrets.randbits(31)};"
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {name} COMMIT;")
                _migrate(database)
                self._take_ballast()
            (name,) = database.execute("PRAGMA application_id").fetchone()
        except BaseException:
            database.close()
            raise
        self._opened = opened
        self._identity = f"{opened}/{name}".replace(" ", "")
        return database


def _insert(database: sqlite3.Connection, seq: int | None, record: Record, reply_to: str | None) -> None:
    database.execute(
        f"INSERT INTO records (seq, reply_to, size, {', '.join(_COLUMNS)}) "  # noqa: S608 - no value in it
        f"VALUES (?, ?, ?{', ?' * len(_COLUMNS)})",
        (seq, reply_to, record.size, *astuple(record)[: len(_COLUMNS)]),
    )


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _migrate(database: sqlite3.Connection) -> None:
    """Add the columns that a file of an earlier version lacks; what waits in it is delivered as before."""
    database.execute("BEGIN IMMEDIATE")
    for table in ("records", "refused"):
        present = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        for name in _ADDED.keys() - present:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {_ADDED[name]}")
    database.execute(f"PRAGMA user_version={_VERSION}")
    database.execute("COMMIT")

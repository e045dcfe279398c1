"""How far an outbox is delivered, where its file itself cannot tell because the disk is full."""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

#: Written once at full length, so that later writes need no room.
_SIZE = 128


class DeliveryProgress:
    """A small file that is overwritten in place, and the lock of the one process that delivers.

    Records that RabbitMQ has and a full disk keeps in the outbox must neither be delivered again nor make others
    wait. Their place is remembered here, and in memory in case the file cannot be written either.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[str, int] = ("", -1)
        self._file: int | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the lock of the host; False when another process has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size < _SIZE:
                # Without it the place is kept in memory alone.
                with contextlib.suppress(OSError):
                    os.pwrite(file, bytes(_SIZE), 0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                self._file = file
                yield True
        finally:
            if self._file == file:
                self._file = None
            os.close(file)

    def abandon(self) -> None:
        """In a child: the lock is the parent's."""
        if self._file is not None:
            os.close(self._file)

    def delivered(self, outbox: str) -> int:
        """Return the place up to which an outbox is delivered, -1 when nothing of it is left over.

        Args:
            outbox: tells one file from another that has taken its place.
        """
        known = self._known[1] if self._known[0] == outbox else -1
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return known
        try:
            said, _, checksum = os.pread(file, _SIZE, 0).rstrip(b"\0").rpartition(b" ")
        finally:
            os.close(file)
        name, _, place = said.decode("ascii", "replace").rpartition(" ")
        if name != outbox or checksum != _checksum(said) or not place.isdecimal():
            return known
        return max(known, int(place))

    def remember(self, outbox: str, place: int) -> None:
        """Note that everything up to a place is delivered; -1 forgets it. Only while the lock is held."""
        self._known = (outbox, place)
        if self._file is not None:
            said = f"{outbox} {place}".encode()
            with contextlib.suppress(OSError):
                os.pwrite(self._file, (said + b" " + _checksum(said)).ljust(_SIZE, b"\0"), 0)
                os.fdatasync(self._file)


def _checksum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)

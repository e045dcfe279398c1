"""The relay: takes the outbox to RabbitMQ, in order, when RabbitMQ is back."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Iterator

from celery_hybrid.errors import OutboxError, RecordTooLargeError, ResultStoreError
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.results.outbox import Outbox, Waiting

logger = logging.getLogger(__name__)

CLOSED, OPEN, DRAINING = "closed", "open", "draining"

_IDLE_PAUSE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_BATCH = 200
_REPORT_SECONDS = 60.0


class Relay:
    """A thread of a worker's main process that empties the outbox.

    All workers of a host have one, and share an outbox; a lock on a file lets one of them work.

    Args:
        outbox: where the records wait.
        publisher: with a connection of its own.
        what: the records are, for the log.
    """

    def __init__(self, outbox: Outbox, publisher: Publisher, what: str = "results") -> None:
        self._what = what
        self._outbox = outbox
        self._publisher = publisher
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._file: int | None = None
        #: :data:`CLOSED` (nothing waits), :data:`OPEN` (RabbitMQ does not take anything) or :data:`DRAINING`.
        self.state = CLOSED
        #: Why the last attempt failed.
        self.failure: Exception | None = None
        #: Grows as long as the thread goes on; 0 before it begins.
        self.steps = 0

    def start(self) -> None:
        """Begin to work, unless it does already."""
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="celery-hybrid relay", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End; what is left waits for the next start of a worker on this host."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0)
        self._publisher.close()

    def abandon(self) -> None:
        """In a child: the thread is not here, and the lock is the parent's."""
        self._publisher.abandon()
        if self._file is not None:
            os.close(self._file)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.steps += 1
            try:
                if self._outbox.waiting():
                    self._drain_alone()
                else:
                    self.state = CLOSED
            except OutboxError as exc:
                logger.error("The %s in the outbox cannot be read: %s", self._what, exc)
            except Exception:
                logger.exception("The relay of the outbox failed, and begins again.")
            self._stopping.wait(_IDLE_PAUSE)

    def empty(self) -> int | None:
        """Deliver all that waits, here and now: for a person, on a host whose workers do not run.

        Returns:
            How many were delivered; None when a worker of the host is at it.

        Raises:
            ResultStoreError: RabbitMQ does not take them. What was not delivered waits as before.
            OutboxError: the file cannot be used.
        """
        with self._alone() as alone:
            if not alone:
                return None
            delivered = 0
            while batch := self._outbox.oldest(_BATCH):
                confirmed, failure = self._deliver(batch)
                if confirmed:
                    self._outbox.remove(confirmed[-1])
                delivered += len(confirmed)
                if failure is not None:
                    raise failure
            return delivered

    def _drain_alone(self) -> None:
        with self._alone() as alone:
            if alone:
                self._drain()
            else:
                self.state = OPEN  # another worker of the host is at it

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock of the host; False when another process has it."""
        file = self._file = os.open(f"{self._outbox.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            self._file = None
            os.close(file)

    def _drain(self) -> None:
        begun = time.monotonic()
        reported = begun
        pause, delivered, failing, last = _FIRST_PAUSE, 0, False, -1
        while not self._stopping.is_set():
            self.steps += 1
            batch = self._outbox.oldest(_BATCH, after=last)
            if not batch:
                break
            confirmed, failure = self._deliver(batch)
            if confirmed:
                last, delivered = confirmed[-1], delivered + len(confirmed)
                self._remove(last)
            if failure is None:
                self.state, self.failure, failing, pause = DRAINING, None, False, _FIRST_PAUSE
                continue
            self.state, self.failure = OPEN, failure
            if not failing or time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                depth = self._outbox.depth()
                logger.warning(
                    "%d %s (%d bytes) wait in the outbox %s until RabbitMQ takes them. %s",
                    *(depth.count, self._what, depth.size, self._outbox.path, failure),
                )
            failing = True
            # Spread, so that not all hosts come back in the same moment.
            self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return
        self._remove(last)
        self.state = CLOSED
        if delivered:
            seconds = time.monotonic() - begun
            logger.info(
                "RabbitMQ takes %s again: %d were delivered from the outbox in %.1f s.",
                *(self._what, delivered, seconds),
            )
        with contextlib.suppress(OutboxError):
            self._outbox.shrink()

    def _remove(self, last: int) -> None:
        """Remove what was delivered. A full disk does not keep the rest from being delivered."""
        try:
            self._outbox.remove(last)
        except OutboxError as exc:
            logger.error("Results were delivered and cannot be removed, so they will be delivered once more: %s", exc)

    def _deliver(self, batch: list[Waiting]) -> tuple[list[int], ResultStoreError | None]:
        """Publish records until one fails; return the places of those that are done with, and why it ended."""
        done: list[int] = []
        for waiting in batch:
            if self._stopping.is_set():
                break
            try:
                self._publisher.publish(waiting.record, waiting.reply_to, confirmed=True)
            except RecordTooLargeError as exc:
                what = (waiting.record.kind, waiting.record.id, exc, self._outbox.path)
                logger.critical("The %s of %s can never be stored: %s It is kept in the table refused of %s.", *what)
                self._outbox.set_aside(waiting.seq, str(exc))
            except ResultStoreError as exc:
                return done, exc
            else:
                done.append(waiting.seq)
        return done, None

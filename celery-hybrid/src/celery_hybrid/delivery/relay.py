"""The relay: takes the outbox to RabbitMQ, in order, when RabbitMQ is back."""

from __future__ import annotations

import contextlib
import logging
import random
import struct
import threading
import time

from celery_hybrid.delivery.failure import failure_instead
from celery_hybrid.delivery.outbox import Outbox, Waiting
from celery_hybrid.errors import OutboxError, RecordTooLargeError, TopologyError
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import DEAD_LETTER, superseded
from celery_hybrid.terminal import counted

logger = logging.getLogger(__name__)

CLOSED, OPEN, DRAINING = "closed", "open", "draining"

_IDLE_PAUSE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_BATCH = 200
_BATCH_BYTES = 4 * 1024 * 1024
# So often may the first record fail while a small one is taken at the same place.
_TRIES = 5
# What a record raises that no protocol can carry.
_UNSUITABLE = (RecordTooLargeError, struct.error, UnicodeError, OverflowError)
_REPORT_SECONDS = 60.0


class Relay:
    """A thread of a worker's main process that empties the outbox.

    All workers of a host have one, and share an outbox; a lock on a file lets one of them work.

    Args:
        outbox: where the records wait.
        publisher: with a connection of its own.
    """

    def __init__(self, outbox: Outbox, publisher: Publisher) -> None:
        self._what = outbox.what
        self._outbox = outbox
        self._publisher = publisher
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._fails = _Failing()
        self._complained = float("-inf")
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
                self._thread = threading.Thread(
                    target=self._run, name=f"celery-hybrid relay of {self._what}", daemon=True
                )
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

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.steps += 1
            try:
                if self._outbox.holds():
                    self._drain_alone()
                else:
                    self.state, self.failure = CLOSED, None
            except OutboxError as exc:
                self.failure = exc
                self._complain("Cannot deliver the %s in the outbox: %s", self._what, exc)
            except Exception as exc:
                self.failure = exc
                logger.exception("The relay of the outbox of %s failed; restarting it.", self._what)
            self._stopping.wait(_IDLE_PAUSE)

    def empty(self) -> int | None:
        """Deliver all that waits, here and now: for a person, on a host whose workers do not run.

        Returns:
            How many were delivered; None when a worker of the host is at it.

        Raises:
            ResultStoreError: RabbitMQ does not take them. What was not delivered waits as before.
            OutboxError: the file cannot be used.
        """
        with self._outbox.progress.alone() as alone:
            if not alone:
                return None
            delivered = 0
            while batch := self._outbox.oldest(_BATCH, _BATCH_BYTES):
                confirmed, failure = self._deliver(batch)
                if confirmed:
                    self._remove(confirmed[-1])
                delivered += len(confirmed)
                if failure is None or self._step_aside(batch, confirmed, failure):
                    continue
                if not self._fails.known:
                    raise failure
                self._stopping.wait(_FIRST_PAUSE)
            return delivered

    def _drain_alone(self) -> None:
        with self._outbox.progress.alone() as alone:
            if alone:
                self._drain()
            else:
                self.state, self.failure = OPEN, None  # another worker of the host is at it

    def _drain(self) -> None:
        begun = time.monotonic()
        reported = begun
        pause, delivered, failing = _FIRST_PAUSE, 0, False
        while not self._stopping.is_set():
            self.steps += 1
            batch = self._outbox.oldest(_BATCH, _BATCH_BYTES)
            if not batch:
                break
            confirmed, failure = self._deliver(batch)
            if confirmed:
                delivered += len(confirmed)
                self._remove(confirmed[-1])
            if failure is not None and self._step_aside(batch, confirmed, failure):
                continue
            if failure is None:
                self.state, self.failure, failing, pause = DRAINING, None, False, _FIRST_PAUSE
                continue
            self.state, self.failure = OPEN, failure
            if not failing or time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                depth = self._outbox.depth()
                logger.warning(
                    "The outbox %s holds %s (%s) until RabbitMQ accepts them: %s",
                    *(self._outbox.path, counted(depth.count, self._what), counted(depth.size, "bytes"), failure),
                )
            failing = True
            # Spread, so that not all hosts come back in the same moment.
            self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311
            # A RabbitMQ that takes others has come back.
            pause = _FIRST_PAUSE if self._fails.known else min(2 * pause, _LONGEST_PAUSE)
        else:
            return
        self.state = CLOSED
        if not self._remove_all():
            return
        self.failure = None
        if delivered:
            seconds = time.monotonic() - begun
            logger.info(
                "RabbitMQ accepts %s again: delivered %d from the outbox in %.1f s.",
                *(self._what, delivered, seconds),
            )
        with contextlib.suppress(OutboxError):
            self._outbox.shrink()

    def _remove(self, last: int) -> bool:
        """Remove what was delivered; return whether that worked. A full disk does not keep others from delivery."""
        try:
            self._outbox.remove(last)
        except OutboxError as exc:
            self._outbox.remember(last)
            self.failure = exc
            self._complain(
                "%s were delivered and cannot be removed from the outbox. They will not be delivered again and do not "
                "block others; free space on that file system. %s",
                *(self._what.capitalize(), exc),
            )
            return False
        return True

    def _remove_all(self) -> bool:
        """Remove what was delivered and not removed then."""
        left = self._outbox.delivered()
        return left < 0 or self._remove(left)

    def _deliver(self, batch: list[Waiting]) -> tuple[list[int], Exception | None]:
        """Publish records until one fails; return the places of those that are done with, and why it ended."""
        needed = _needed(batch)
        if self.state == OPEN:
            # RabbitMQ may still be away: the first one finds out.
            done, failure = self._deliver_singly(needed[:1])
        else:
            done, failure = self._deliver_together(needed)
        return [waiting.seq for waiting in batch if done and waiting.seq <= done[-1]], failure

    def _deliver_together(self, batch: list[Waiting]) -> tuple[list[int], Exception | None]:
        done: list[int] = []
        try:
            for place, _ in enumerate(self._publisher.publish_all([(each.record, each.reply_to) for each in batch])):
                done.append(batch[place].seq)
        except Exception as exc:
            # It does not tell for certain which record has failed.
            logger.debug("Delivered %d of %d at the same time: %s", len(done), len(batch), exc)
            more, failure = self._deliver_singly(batch[len(done) :])
            return done + more, failure
        return done, None

    def _deliver_singly(self, batch: list[Waiting]) -> tuple[list[int], Exception | None]:
        done: list[int] = []
        for waiting in batch:
            if self._stopping.is_set():
                break
            attempt = 1 + self._fails.count(waiting.seq)
            try:
                self._publisher.publish(waiting.record, waiting.reply_to, confirmed=True, attempt=attempt)
            except _UNSUITABLE as exc:
                try:
                    self._set_aside(waiting, exc)
                except OutboxError as full:
                    return done, full
                break  # what took its place comes next
            except Exception as exc:
                return done, exc
            else:
                done.append(waiting.seq)
        return done, None

    def _step_aside(self, batch: list[Waiting], confirmed: list[int], failure: Exception) -> bool:
        """Set the first record aside if it is what fails, again and again; return whether that was done.

        RabbitMQ takes a small record at the same place each time: then it is not away.
        """
        first = next((each for each in _needed(batch) if not confirmed or each.seq > confirmed[-1]), None)
        elsewhere = isinstance(failure, (TopologyError, OutboxError))
        if first is None or elsewhere or first.record.kind == DEAD_LETTER:
            self._fails.reset()
            return False
        try:
            self._publisher.probe(first.record)
        except Exception:
            self._fails.reset()
            return False
        if self._fails.add(first.seq) < _TRIES:
            return False
        self._set_aside(first, failure)
        return True

    def _set_aside(self, waiting: Waiting, exc: Exception) -> None:
        record, reason = waiting.record, str(exc) or type(exc).__name__
        logger.critical(
            "The %s of %s can never be stored: %s It is set aside in %s; 'celery tasks refused' shows it, "
            "tries it again or removes it.",
            *(record.kind.replace("-", " "), record.id, reason, self._outbox.path),
        )
        self._outbox.set_aside(waiting.seq, reason, failure_instead(record, reason))

    def _complain(self, text: str, *values: object) -> None:
        if time.monotonic() - self._complained > _REPORT_SECONDS:
            self._complained = time.monotonic()
            logger.error(text, *values)


def _needed(batch: list[Waiting]) -> list[Waiting]:
    """Return those that no later one of the batch makes meaningless."""
    outdated = superseded([waiting.record for waiting in batch])
    return [waiting for place, waiting in enumerate(batch) if place not in outdated]


class _Failing:
    """How often the record that comes first has failed while others were taken."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seq, self._count = -1, 0

    @property
    def known(self) -> bool:
        return self._count > 0

    def count(self, seq: int) -> int:
        return self._count if seq == self._seq else 0

    def add(self, seq: int) -> int:
        self._seq, self._count = seq, self.count(seq) + 1
        return self._count

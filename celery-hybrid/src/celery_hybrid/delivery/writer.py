"""Storing a record: confirmed by RabbitMQ immediately, or kept in the outbox until RabbitMQ takes it."""

from __future__ import annotations

import logging
import threading
import time

from celery_hybrid.delivery.outbox import FullError, NobodyWaitsError, Outbox
from celery_hybrid.errors import OutboxError, RecordTooLargeError, ResultStoreError
from celery_hybrid.processes import must_not_wait
from celery_hybrid.rabbitmq.options import DROP_OLDEST, Options
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import DEAD_LETTER, Record

logger = logging.getLogger(__name__)

#: Seconds that the event loop of a worker gives RabbitMQ.
_LOOP_PATIENCE = 1.0
_FULL_PAUSE = 0.25
_REPORT_SECONDS = 30.0


class Writer:
    """Stores the records of a process that runs tasks; it never raises because RabbitMQ is away.

    A result write that raises makes Celery record a failure for a task that has succeeded, or acknowledge it without
    any result. So what RabbitMQ does not take goes to the outbox. When that is full, the policy says whether the
    task waits (``block``) or the oldest record is dropped.

    Args:
        publisher: to RabbitMQ.
        outbox: for what RabbitMQ does not take.
        options: the policy and the bound of one attempt.
    """

    def __init__(self, publisher: Publisher, outbox: Outbox, options: Options) -> None:
        self._what = outbox.what
        self._publisher = publisher
        self._outbox = outbox
        self._options = options
        self._told = False
        self._reported = float("-inf")
        self._lock = threading.Lock()

    def write(self, record: Record, reply_to: str | None = None) -> None:
        """Store a record.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.

        Raises:
            RecordTooLargeError: RabbitMQ will never take it.
            OutboxError: there is no room for a dead letter, in the event loop. Its task is still in Redis.
        """
        loop = must_not_wait()
        patience = _LOOP_PATIENCE if loop else self._options.confirm_time(len(record.body))
        while True:
            # Not behind those that a full disk keeps in the outbox although RabbitMQ has them.
            behind = self._waiting()
            failure = None if behind else self._publish(record, reply_to, patience)
            if not behind and failure is None:
                self._told = False
                return
            reason = str(failure) if failure else "The outbox already holds earlier ones."
            try:
                self._outbox.add(record, reply_to, reserve=loop, behind=behind)
            except NobodyWaitsError:
                continue  # delivered in this moment; else this one would make all others wait behind it
            except OutboxError as exc:
                full = exc
            else:
                self._tell(reason, logging.INFO if behind else logging.WARNING)
                return
            if isinstance(full, FullError) and self._options.outbox_full == DROP_OLDEST and self._drop(record):
                continue
            if loop:
                # Out of order is better than lost; readers know which of a task's records counts.
                if not behind or self._publish(record, reply_to, patience):
                    self._give_up(record, reason, full)
                return
            self._complain("This process blocks: RabbitMQ does not accept %s (%s) and %s.", self._what, reason, full)
            time.sleep(_FULL_PAUSE)

    def _publish(self, record: Record, reply_to: str | None, patience: float) -> ResultStoreError | None:
        """Publish a record; return why RabbitMQ did not take it."""
        try:
            self._publisher.publish(record, reply_to, patience)
        except RecordTooLargeError:
            raise
        except ResultStoreError as exc:
            return exc
        return None

    @staticmethod
    def _give_up(record: Record, reason: str, full: OutboxError) -> None:
        if record.kind == DEAD_LETTER:
            raise full
        logger.critical(
            "The %s of %s is lost: RabbitMQ does not accept it (%s) and %s.", record.kind, record.id, reason, full
        )

    def _waiting(self) -> bool:
        try:
            return self._outbox.waiting()
        except OutboxError:
            return False  # add() tells why, when it is needed

    def _tell(self, reason: str, level: int) -> None:
        # Once for each outage, not for each result.
        if not self._told:
            self._told = True
            what, path = self._what.capitalize(), self._outbox.path
            logger.log(level, "%s go to the outbox %s until RabbitMQ accepts them. %s", what, path, reason)

    def _drop(self, record: Record) -> bool:
        """Make room for a record; return whether that helped. A full disk has none to give."""
        try:
            dropped = self._outbox.drop_oldest(record.size)
        except OutboxError as exc:
            self._complain("%s", exc)
            return False
        for name in dropped:
            logger.error(
                "The outbox %s is full; the oldest of its %s, of %s, is dropped.", self._outbox.path, self._what, name
            )
        return bool(dropped)

    def _complain(self, text: str, *values: object) -> None:
        with self._lock:
            now = time.monotonic()
            due = now - self._reported > _REPORT_SECONDS
            if due:
                self._reported = now
        if due:
            logger.error(text, *values)

"""The way of one kind of records to RabbitMQ: a writer, their outbox, and the relay that empties it."""

from __future__ import annotations

import logging
from typing import Any

from celery_hybrid.delivery.outbox import Outbox
from celery_hybrid.delivery.relay import Relay
from celery_hybrid.delivery.writer import Writer
from celery_hybrid.errors import OutboxError, RecordTooLargeError
from celery_hybrid.processes import is_pool_child, runs_tasks
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import Record
from celery_hybrid.terminal import counted

logger = logging.getLogger(__name__)

RESULTS, DEAD_LETTERS = "results", "dead letters"

#: What follows when the outbox cannot be used.
_CONSEQUENCES = {
    RESULTS: "Tasks will block whenever RabbitMQ does not accept their results.",
    DEAD_LETTERS: "Failed tasks will stay in Redis whenever RabbitMQ does not accept their dead letters.",
}


class Delivery:
    """Brings records of one kind to RabbitMQ, and keeps those that it does not take in an outbox of their own.

    Each kind has one, so that a queue of dead letters that is full does not hold up results.

    Args:
        what: the records are, :data:`RESULTS` or :data:`DEAD_LETTERS`; messages to people say so.
        publisher: to RabbitMQ, which the process may share.
        relay_publisher: the same, with a connection of its own.
        outbox: for what RabbitMQ does not take; None for none.
        options: of the result store.
    """

    def __init__(
        self, what: str, publisher: Publisher, relay_publisher: Publisher, outbox: Outbox | None, options: Options
    ) -> None:
        self.what = what
        self.outbox = outbox
        self._publisher = publisher
        self._writer = Writer(publisher, outbox, options) if outbox is not None else None
        #: Empties the outbox; None where there is none.
        self.relay = Relay(outbox, relay_publisher) if outbox is not None else None

    def write(self, record: Record, reply_to: str | None = None) -> None:
        """Store a record: confirmed by RabbitMQ or, in the processes of a worker, kept in the outbox until it is.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.

        Raises:
            RecordTooLargeError: RabbitMQ will never take it.
            ResultStoreError: RabbitMQ did not take it, and this process has no outbox.
        """
        if self._writer is None or self.relay is None or not runs_tasks():
            self._publisher.publish(record, reply_to)
            return
        self._writer.write(record, reply_to)
        if not is_pool_child():
            self.relay.start()

    def keep(self, record: Record) -> None:
        """Store a record as :meth:`write` does, in any process, also one that RabbitMQ will never take.

        Raises:
            ResultStoreError: RabbitMQ did not take it, and there is no outbox.
            OutboxError: nor did the outbox.
        """
        if self._writer is None or self.relay is None or self.outbox is None:
            self._publisher.publish(record)
            return
        try:
            self._writer.write(record)
        except RecordTooLargeError:
            # The relay sets it aside, for a person to look at.
            self.outbox.add(record, None, reserve=True)
        self.relay.start()

    def serve(self) -> None:
        """Empty the outbox from now on, in a worker's main process."""
        if self.relay is None or self.outbox is None:
            return
        try:
            waiting = self.outbox.depth().count
        except OutboxError as exc:
            logger.error("%s. %s", exc, _CONSEQUENCES[self.what])
            return
        if waiting:
            logger.warning("The outbox %s holds %s of an earlier run.", self.outbox.path, counted(waiting, self.what))
        self.relay.start()

    @property
    def failure(self) -> str | None:
        """Why the last attempt to empty the outbox failed."""
        return str(self.relay.failure) if self.relay is not None and self.relay.failure is not None else None

    def depth(self) -> dict[str, Any]:
        """Return how full the outbox is, or why that is not known; nothing where there is none."""
        if self.outbox is None:
            return {}
        try:
            return {"path": str(self.outbox.path), **vars(self.outbox.depth())}
        except OutboxError as exc:
            return {"path": str(self.outbox.path), "error": str(exc)}

    def stop(self) -> None:
        """End the relay; what is left waits for the next start of a worker on this host."""
        if self.relay is not None:
            self.relay.stop()

    def abandon(self) -> None:
        """In a child: the relay is the parent's."""
        if self.relay is not None:
            self.relay.abandon()

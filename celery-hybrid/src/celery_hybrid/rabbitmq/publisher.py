"""Publishing records: each is confirmed by RabbitMQ before the call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import amqp
from celery import states

from celery_hybrid.errors import ResultStoreUnreachableError, TopologyError
from celery_hybrid.names import letters_exchange
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Link, Servers, translated
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import Record

#: Seconds that an attempt gets although the time is over.
_SHORTEST = 0.05

#: STARTED records under way; one more is waited for.
_UNCONFIRMED = 100


class Publisher:
    """Publishes over one connection, which the threads of the process share.

    Args:
        servers: where.
        options: timeouts and the number of partitions.
        prepare: checks the topology on every new connection.
        purpose: shown in RabbitMQ's list of connections.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        prepare: Callable[[amqp.Connection], None],
        purpose: str = "publisher",
    ) -> None:
        self._options = options
        self._link = Link(servers, purpose, self._prepared)
        self._prepare = prepare
        self._channel: ConfirmedChannel | None = None

    def publish(
        self,
        record: Record,
        reply_to: str | None = None,
        patience: float | None = None,
        confirmed: bool = False,
    ) -> None:
        """Publish a record, and return when it is confirmed.

        A STARTED record is not waited for: it costs each task a round trip, and says nothing that the next record
        does not. Its confirm is seen with that one.

        An idle connection may be dead without our knowing, so a failure on an old one is tried once more on a fresh
        one. The first attempt may have arrived all the same: a record that is there twice changes nothing.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.
            patience: seconds for all of it; None gives each attempt the timeouts of the options.
            confirmed: wait for the confirm of STARTED, too.

        Raises:
            RecordTooLargeError: RabbitMQ will never take it.
            ResultStoreUnreachableError: it was not confirmed in time; whether it arrived is not known.
            ResultStoreError: RabbitMQ refused it.
        """
        options = self._options
        message = record.to_message(reply_to, journal=options.survive_power_loss)
        routing_key = record.routing_key(options.partitions)
        self._send(message, record.exchange, routing_key, patience, wait=confirmed or record.status != states.STARTED)

    def dead_letter(self, message: amqp.Message, routing_key: str) -> None:
        """Publish a dead letter, and return when it is confirmed; raises what :meth:`publish` does."""
        self._send(message, letters_exchange(routing_key), routing_key, None)

    def _send(
        self, message: amqp.Message, exchange: str, routing_key: str, patience: float | None, wait: bool = True
    ) -> None:
        turn = 2 * (self._options.connect_timeout + self._options.confirm_timeout) if patience is None else patience
        deadline = None if patience is None else time.monotonic() + patience
        with self._link.turn(turn):
            fresh = not self._link.connected
            try:
                self._publish(message, exchange, routing_key, deadline, wait)
            except ResultStoreUnreachableError as exc:
                # A nack says nothing against the connection: a reply queue that is being deleted is enough for one.
                if fresh and not isinstance(exc.__cause__, amqp.exceptions.MessageNacked):
                    raise
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                self._publish(message, exchange, routing_key, deadline, wait)

    def _publish(
        self, message: amqp.Message, exchange: str, routing_key: str, deadline: float | None, wait: bool
    ) -> None:
        remaining = None if deadline is None else max(_SHORTEST, deadline - time.monotonic())
        confirm = self._options.confirm_timeout
        try:
            with translated("storing a result"):
                self._link.connection(remaining)
                assert self._channel is not None  # noqa: S101 - made by _prepared
                number = self._channel.publish(message, exchange, routing_key)
                if not wait and self._channel.unconfirmed < _UNCONFIRMED:
                    return
                taken = self._channel.wait(number, confirm if remaining is None else min(confirm, remaining))
        except BaseException:
            self._link.drop()
            raise
        if not taken:
            self._link.drop()
            raise TopologyError(
                f"storing a result: RabbitMQ has nothing bound to the exchange {exchange} with the key {routing_key}. "
                "Run the rabbitmq role of celeryops.hybrid against it; it repairs what is missing."
            )

    def _prepared(self, connection: amqp.Connection) -> None:
        # On every new connection, not only the first: RabbitMQ may have come back without its streams.
        self._prepare(connection)
        self._channel = ConfirmedChannel(connection)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone."""
        self._link.abandon()

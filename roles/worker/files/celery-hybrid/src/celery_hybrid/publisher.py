"""Publishing records: each is confirmed by RabbitMQ before the call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import amqp

from celery_hybrid.connection import Link, Servers, translated, watch_returns
from celery_hybrid.errors import ResultStoreUnreachableError, TopologyError
from celery_hybrid.names import DEAD_LETTER_EXCHANGE, RESULTS_EXCHANGE
from celery_hybrid.options import Options
from celery_hybrid.records import Record

#: Seconds that an attempt gets although the time is over.
_SHORTEST = 0.05


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
        self._channel: amqp.Channel | None = None
        self._returned: list[str] = []

    def publish(self, record: Record, reply_to: str | None = None, patience: float | None = None) -> None:
        """Publish a record, and return when it is confirmed.

        An idle connection may be dead without our knowing, so a failure on an old one is tried once more on a fresh
        one. The first attempt may have arrived all the same: a record that is there twice changes nothing.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.
            patience: seconds for all of it; None gives each attempt the timeouts of the options.

        Raises:
            RecordTooLargeError: RabbitMQ will never take it.
            ResultStoreUnreachableError: it was not confirmed in time; whether it arrived is not known.
            ResultStoreError: RabbitMQ refused it.
        """
        self._send(
            record.to_message(reply_to), RESULTS_EXCHANGE, record.routing_key(self._options.partitions), patience
        )

    def dead_letter(self, message: amqp.Message, routing_key: str) -> None:
        """Publish a dead letter, and return when it is confirmed; raises what :meth:`publish` does."""
        self._send(message, DEAD_LETTER_EXCHANGE, routing_key, None)

    def _send(self, message: amqp.Message, exchange: str, routing_key: str, patience: float | None) -> None:
        turn = 2 * (self._options.connect_timeout + self._options.confirm_timeout) if patience is None else patience
        deadline = None if patience is None else time.monotonic() + patience
        with self._link.turn(turn):
            fresh = not self._link.connected
            try:
                self._publish(message, exchange, routing_key, deadline)
            except ResultStoreUnreachableError as exc:
                # A nack says nothing against the connection: a reply queue that is being deleted is enough for one.
                if fresh and not isinstance(exc.__cause__, amqp.exceptions.MessageNacked):
                    raise
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                self._publish(message, exchange, routing_key, deadline)

    def _publish(self, message: amqp.Message, exchange: str, routing_key: str, deadline: float | None) -> None:
        remaining = None if deadline is None else max(_SHORTEST, deadline - time.monotonic())
        confirm = self._options.confirm_timeout
        try:
            with translated("storing a result"):
                self._link.connection(remaining)
                assert self._channel is not None  # noqa: S101 - made by _prepared
                self._returned.clear()
                self._channel.basic_publish(
                    message,
                    exchange,
                    routing_key,
                    mandatory=True,
                    confirm_timeout=confirm if remaining is None else min(confirm, remaining),
                )
        except BaseException:
            # py-amqp takes any confirm for that of the message it waits for, so one that comes late would confirm
            # another message.
            self._link.drop()
            raise
        if self._returned:
            self._link.drop()
            raise TopologyError(
                f"storing a result: RabbitMQ has nothing bound to the exchange {exchange} with the key {routing_key}. "
                "Run the rabbitmq role of celeryops.hybrid against it; it repairs what is missing."
            )

    def _prepared(self, connection: amqp.Connection) -> None:
        # On every new connection, not only the first: RabbitMQ may have come back without its streams.
        self._prepare(connection)
        channel = connection.channel()
        self._returned = watch_returns(channel)
        self._channel = channel

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone."""
        self._link.abandon()

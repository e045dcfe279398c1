"""Publishing records: each is confirmed by RabbitMQ before the call returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import amqp
from celery import states

from celery_hybrid.errors import RecordTooLargeError, ResultStoreUnreachableError, TopologyError
from celery_hybrid.names import letters_exchange
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Link, Servers, translated
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import SEED, Record

#: Seconds that an attempt gets although the time is over.
_SHORTEST = 0.05

#: STARTED records under way; one more is waited for.
_UNCONFIRMED = 100

#: STARTED records of more bytes than this are waited for: one that RabbitMQ refuses would end the channel later.
_LARGE = 1_000_000


@dataclass(frozen=True)
class _Parcel:
    """A message, what it is for people, and where it goes."""

    what: str
    message: amqp.Message
    exchange: str
    key: str


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
        attempt: int = 1,
    ) -> None:
        """Publish a record, and return when it is confirmed.

        A STARTED record is not waited for: it costs each task a round trip, and says nothing that the next record
        does not. Its confirm is seen with that one.

        An idle connection may be dead without our knowing, so a failure on an old one is tried once more on a fresh
        one. The first attempt may have arrived all the same: a record that is there twice changes nothing.

        Args:
            record: the record.
            reply_to: address of the client that waits for it.
            patience: seconds for all of it; None gives each attempt the timeouts of the options, and more to a large
                record.
            confirmed: wait for the confirm of STARTED, too.
            attempt: the how many-th it is; each one is given more time.

        Raises:
            RecordTooLargeError: RabbitMQ will never take it.
            ResultStoreUnreachableError: it was not confirmed in time; whether it arrived is not known.
            ResultStoreError: RabbitMQ refused it.
        """
        wait = confirmed or record.status != states.STARTED or len(record.body) > _LARGE
        self._send(self._parcel(record, reply_to), patience, wait, attempt)

    def publish_all(self, batch: Iterable[tuple[Record, str | None]]) -> Iterator[None]:
        """Publish records in their order, all of them before the first is confirmed; yield whenever the next one is.

        Those behind one that fails may have arrived.

        Args:
            batch: each record with the address of the client that waits for it.

        Raises:
            ResultStoreError: the next one failed, and why.
        """
        with self._link.turn(self._turn):
            parcels = [self._parcel(record, reply_to) for record, reply_to in batch]
            try:
                with translated(f"storing {len(parcels)} {_kinds(parcels)}"):
                    self._link.connection()
                    channel = self._confirmed
                    numbers = [channel.publish(parcel.message, parcel.exchange, parcel.key) for parcel in parcels]
                under_way = 0
                for number, parcel in zip(numbers, parcels, strict=True):
                    under_way += len(parcel.message.body)
                    with translated(f"storing {parcel.what}"):
                        self._taken(channel.wait(number, self._options.confirm_time(under_way)), parcel)
                    yield
            except BaseException:
                self._link.drop()
                raise

    def probe(self, record: Record) -> None:
        """Publish a small record, which no reader sees, to where this one goes; raises what :meth:`publish` does."""
        message = Record("", SEED, subject=SEED).to_message()
        key = record.routing_key(self._options.partitions)
        self._send(_Parcel("a test message", message, record.exchange, key), None)

    def dead_letter(self, message: amqp.Message, routing_key: str) -> None:
        """Publish a dead letter, and return when it is confirmed; raises what :meth:`publish` does."""
        self._send(_Parcel("a dead letter", message, letters_exchange(routing_key), routing_key), None)

    def _parcel(self, record: Record, reply_to: str | None) -> _Parcel:
        options = self._options
        message = record.to_message(reply_to, journal=options.survive_power_loss)
        return _Parcel(record.what, message, record.exchange, record.routing_key(options.partitions))

    @property
    def _turn(self) -> float:
        return 2 * (self._options.connect_timeout + self._options.confirm_timeout)

    def _send(self, parcel: _Parcel, patience: float | None, wait: bool = True, attempt: int = 1) -> None:
        deadline = None if patience is None else time.monotonic() + patience
        with self._link.turn(self._turn if patience is None else patience):
            fresh = not self._link.connected
            others = self._channel.unconfirmed if self._channel is not None and not fresh else 0
            try:
                self._publish(parcel, deadline, wait, attempt)
            except RecordTooLargeError:
                # RabbitMQ closes the channel, and does not say for which of the messages under way.
                if not others:
                    raise
                self._publish(parcel, deadline, wait, attempt)
            except ResultStoreUnreachableError as exc:
                # A nack says nothing against the connection: a reply queue that is being deleted is enough for one.
                if fresh and not isinstance(exc.__cause__, amqp.exceptions.MessageNacked):
                    raise
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                self._publish(parcel, deadline, wait, attempt)

    def _publish(self, parcel: _Parcel, deadline: float | None, wait: bool, attempt: int) -> None:
        try:
            with translated(f"storing {parcel.what}"):
                self._link.connection(_remaining(deadline))
                number = self._confirmed.publish(parcel.message, parcel.exchange, parcel.key, awaited=wait)
                if not wait and self._confirmed.unconfirmed < _UNCONFIRMED:
                    return
                limit = attempt * self._options.confirm_time(len(parcel.message.body))
                remaining = _remaining(deadline)
                taken = self._confirmed.wait(number, limit if remaining is None else min(limit, remaining))
            self._taken(taken, parcel)
        except BaseException:
            self._link.drop()
            raise

    @staticmethod
    def _taken(taken: bool, parcel: _Parcel) -> None:
        if not taken:
            raise TopologyError(
                f"storing {parcel.what}: RabbitMQ has nothing bound to the exchange {parcel.exchange} with the key "
                f"{parcel.key}. Run the rabbitmq role of celeryops.hybrid against it; it declares what is missing."
            )

    @property
    def _confirmed(self) -> ConfirmedChannel:
        assert self._channel is not None  # noqa: S101 - made by _prepared
        return self._channel

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


def _kinds(parcels: Sequence[_Parcel]) -> str:
    """Return what several messages are, for people."""
    return "dead letters" if all(parcel.what == "a dead letter" for parcel in parcels) else "records"


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(_SHORTEST, deadline - time.monotonic())

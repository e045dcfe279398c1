"""A record is stored although the first attempt fails, where trying again is right."""

from __future__ import annotations

from typing import Any

import amqp
import pytest

from celery_hybrid.errors import (
    RecordTooLargeError,
    ResultStoreError,
    ResultStoreStartingError,
    ResultStoreUnreachableError,
    TopologyError,
)
from celery_hybrid.rabbitmq import connection
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Link, translated
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import DEAD_LETTER, RESULT, Record


class Channel:
    """A channel of a server that fails, nacks or returns as it is told, and remembers what it kept."""

    def __init__(self, server: Servers) -> None:
        self.server = server
        self.number = 0
        self.events: dict[str, set[Any]] = {"basic_return": set(), "basic_ack": set(), "basic_nack": set()}
        self.pending: list[tuple[str, tuple[Any, ...]]] = []

    def confirm_select(self) -> None:
        pass

    def basic_publish(self, message: amqp.Message, exchange: str, routing_key: str, mandatory: bool) -> None:
        assert mandatory
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure is not None and not isinstance(failure, amqp.exceptions.MessageNacked):
            raise failure
        self.number += 1
        if self.server.no_queue:
            self.pending.append(("basic_return", (None, exchange, routing_key, message)))
        self.pending.append(("basic_nack" if failure else "basic_ack", (self.number, False)))
        if failure is None:
            self.server.kept.append(routing_key)

    def drain(self) -> None:
        if not self.pending:
            raise TimeoutError
        name, arguments = self.pending.pop(0)
        for handler in self.events[name]:
            handler(*arguments)


class Connection:
    def __init__(self, server: Servers) -> None:
        self.made = Channel(server)

    def channel(self) -> Channel:
        return self.made

    def drain_events(self, timeout: float) -> None:
        self.made.drain()


class Servers:
    """Hands out connections that share a script of failures."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.kept: list[str] = []
        self.connections = 0
        self.no_queue = False

    def connect(self, purpose: str, timeout: float | None = None) -> Any:
        self.connections += 1
        return Connection(self)


def publish(servers: Servers, times: int = 1) -> None:
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    for _ in range(times):
        publisher.publish(Record("id", RESULT))


def test_a_nack_is_tried_once_more_on_a_fresh_connection() -> None:
    servers = Servers(amqp.exceptions.MessageNacked())
    publish(servers)
    assert (len(servers.kept), servers.connections) == (1, 2)


def test_a_second_nack_is_told() -> None:
    servers = Servers(amqp.exceptions.MessageNacked(), amqp.exceptions.MessageNacked())
    with pytest.raises(ResultStoreUnreachableError, match="did not keep it"):
        publish(servers)
    assert servers.kept == []


def test_a_fresh_connection_that_fails_is_told_at_once() -> None:
    servers = Servers(ConnectionResetError("reset"))
    with pytest.raises(ResultStoreUnreachableError, match="reset"):
        publish(servers)
    assert servers.connections == 1


def test_an_idle_connection_that_is_dead_is_replaced() -> None:
    servers = Servers()
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    publisher.publish(Record("one", RESULT))
    servers.failures.append(ConnectionResetError("reset"))
    publisher.publish(Record("two", RESULT))
    assert (len(servers.kept), servers.connections) == (2, 2)


def test_a_record_that_no_stream_took_is_not_called_stored() -> None:
    servers = Servers()
    servers.no_queue = True
    with pytest.raises(TopologyError, match="nothing bound to the exchange"):
        publish(servers)


def test_started_is_not_waited_for_and_its_confirm_is_not_taken_for_another() -> None:
    servers = Servers()
    channel = ConfirmedChannel(servers.connect(""))
    server = channel._channel
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    publisher._link.connection()
    publisher._channel = channel
    publisher.publish(Record("id", RESULT, status="STARTED"))
    assert len(server.pending) == 1
    server.pending.clear()  # its confirm is late
    publisher.publish(Record("id", RESULT, status="SUCCESS"))
    assert channel.unconfirmed == 1
    server.pending.append(("basic_ack", (1, False)))
    server.drain()
    assert channel.unconfirmed == 0


def test_many_confirms_at_once_and_in_any_order() -> None:
    channel = ConfirmedChannel(Servers().connect(""))
    server = channel._channel
    numbers = [channel.publish(amqp.Message(b""), "", "") for _ in range(4)]
    server.pending = [("basic_ack", (4, False)), ("basic_ack", (2, True)), ("basic_nack", (3, False))]
    assert channel.wait(numbers[3], 1)
    assert channel.unconfirmed == 3
    assert channel.wait(numbers[0], 1)
    assert channel.wait(numbers[1], 1)
    with pytest.raises(amqp.exceptions.MessageNacked):
        channel.wait(numbers[2], 1)
    late = channel.publish(amqp.Message(b""), "", "")
    server.pending.clear()
    with pytest.raises(TimeoutError):
        channel.wait(late, 0.01)


def test_many_are_published_before_the_first_is_confirmed_and_told_in_order() -> None:
    servers = Servers()
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    batch = [(Record(str(number), RESULT), None) for number in range(3)]
    under_way = []
    for _ in publisher.publish_all(batch):
        assert publisher._channel is not None
        under_way.append((len(servers.kept), publisher._channel.unconfirmed))
    assert under_way == [(3, 2), (3, 1), (3, 0)]
    assert publisher._link.connected


def test_those_behind_one_that_fails_do_not_count_as_stored() -> None:
    servers = Servers()
    publisher = Publisher(servers, Options(confirm_timeout=0.1), lambda _: None)  # type: ignore[arg-type]
    publisher.publish(Record("before", RESULT))
    servers.failures = [None, amqp.exceptions.MessageNacked(), None]  # type: ignore[list-item]
    storing = publisher.publish_all([(Record(str(number), RESULT), None) for number in range(3)])
    next(storing)
    with pytest.raises(ResultStoreUnreachableError, match="storing a result: RabbitMQ did not keep it"):
        next(storing)
    assert not publisher._link.connected


def test_a_large_record_is_given_more_time_and_each_attempt_more() -> None:
    waited: list[float] = []
    publisher = Publisher(Servers(), Options(confirm_timeout=3), lambda _: None)  # type: ignore[arg-type]
    publisher.publish(Record("first", RESULT))
    assert publisher._channel is not None
    publisher._channel.wait = lambda _, timeout: not waited.append(timeout)  # type: ignore[func-returns-value,method-assign,misc]
    publisher.publish(Record("small", RESULT))
    publisher.publish(Record("large", RESULT, body=bytes(10_000_000)))
    publisher.publish(Record("large", RESULT, body=bytes(10_000_000)), attempt=3)
    publisher.publish(Record("large", RESULT, body=bytes(10_000_000)), patience=1)
    assert [round(seconds, 1) for seconds in waited] == [3, 13, 39, 1]


def test_a_record_is_not_blamed_for_another_that_is_too_large_and_under_way() -> None:
    servers = Servers()
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    publisher.publish(Record("large", RESULT, status="STARTED"))
    assert publisher._channel is not None
    publisher._channel._channel.pending.clear()
    servers.failures.append(amqp.exceptions.PreconditionFailed("message size 17 is larger than configured max size 16"))
    publisher.publish(Record("small", RESULT, status="SUCCESS"))
    assert servers.connections == 2
    servers.failures.append(amqp.exceptions.PreconditionFailed("message size 17 is larger than configured max size 16"))
    with pytest.raises(RecordTooLargeError):
        publisher.publish(Record("large", RESULT, status="SUCCESS"))


def test_errors_name_what_was_to_be_stored() -> None:
    servers = Servers()
    servers.no_queue = True
    publisher = Publisher(servers, Options(), lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(
        TopologyError, match=r"^storing a dead letter: RabbitMQ has nothing bound to the exchange celery\.dlx"
    ):
        publisher.publish(Record("id", DEAD_LETTER, subject="task.failed"))
    with pytest.raises(TopologyError, match=r"^storing a dead letter: "):
        publisher.dead_letter(amqp.Message(b""), "result.refused")


@pytest.mark.parametrize(
    ("text", "error", "delete"),
    [
        ("delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms", OSError, False),
        ("unknown delivery tag 7", OSError, False),
        ("inequivalent arg 'x-queue-type' for queue 'celery.results.0'", TopologyError, True),
        ("invalid arg 'x-max-length'", ResultStoreError, False),
        ("message size 17 is larger than configured max size 16", RecordTooLargeError, False),
    ],
)
def test_only_other_arguments_lead_to_the_advice_to_delete_an_object(text: str, error: type, delete: bool) -> None:
    with pytest.raises(ResultStoreError) as caught, translated("looking"):
        raise amqp.exceptions.PreconditionFailed(text)
    assert isinstance(caught.value, error)
    assert isinstance(caught.value, TopologyError) == delete
    assert ("has to be deleted" in str(caught.value)) == delete


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "home node 'rabbit@localhost' of durable queue 'x' in vhost 'celery' is down or inaccessible",
            ResultStoreStartingError,
        ),
        ("no queue 'x' in vhost 'celery'", TopologyError),
    ],
)
def test_a_stream_that_starts_is_not_one_that_is_missing(text: str, error: type[Exception]) -> None:
    with pytest.raises(error), translated("looking"):
        raise amqp.exceptions.NotFound(text, (50, 10), "Queue.declare")


def test_a_rabbitmq_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda _: None)
    failures = [ResultStoreStartingError("starting"), ResultStoreStartingError("starting")]

    def prepare(_: Any) -> None:
        if failures:
            raise failures.pop()

    servers = Servers()
    link = Link(servers, "test", prepare)  # type: ignore[arg-type]
    link.connection()
    assert (link.connected, servers.connections) == (True, 3)


def test_a_rabbitmq_that_never_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STARTING_SECONDS", -1.0)

    def prepare(_: Any) -> None:
        raise ResultStoreStartingError("starting")

    with pytest.raises(ResultStoreStartingError):
        Link(Servers(), "test", prepare).connection()  # type: ignore[arg-type]

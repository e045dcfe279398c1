"""A record is stored although the first attempt fails, where trying again is right."""

from __future__ import annotations

from typing import Any

import amqp
import pytest

from celery_hybrid import connection
from celery_hybrid.connection import Link, translated
from celery_hybrid.errors import ResultStoreStartingError, ResultStoreUnreachableError, TopologyError
from celery_hybrid.options import Options
from celery_hybrid.publisher import Publisher
from celery_hybrid.records import RESULT, Record


class Channel:
    """A channel that fails as it is told, and remembers what it kept."""

    def __init__(self, failures: list[Exception], kept: list[str]) -> None:
        self.failures = failures
        self.kept = kept
        self.events: dict[str, set[Any]] = {"basic_return": set()}

    def basic_publish(self, message: amqp.Message, exchange: str, routing_key: str, **_: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.kept.append(routing_key)


class Servers:
    """Hands out connections that share a script of failures."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.kept: list[str] = []
        self.connections = 0

    def connect(self, purpose: str, timeout: float | None = None) -> Any:
        self.connections += 1
        return type("Connection", (), {"channel": lambda _: Channel(self.failures, self.kept)})()


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


def test_a_record_that_no_stream_took_is_not_called_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def comes_back(self: Channel, message: amqp.Message, exchange: str, routing_key: str, **_: Any) -> None:
        for handler in self.events["basic_return"]:
            handler(None, exchange, routing_key, message)

    monkeypatch.setattr(Channel, "basic_publish", comes_back)
    with pytest.raises(TopologyError, match="nothing bound to the exchange"):
        publish(Servers())


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

"""A result that RabbitMQ does not take goes to the outbox, behind those that wait there already."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from celery_hybrid.errors import (
    OutboxError,
    RecordTooLargeError,
    ResultStoreError,
    ResultStoreUnreachableError,
    TopologyError,
)
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.results import relay as relay_module
from celery_hybrid.results import writer as writer_module
from celery_hybrid.results.outbox import Outbox
from celery_hybrid.results.relay import CLOSED, OPEN, Relay
from celery_hybrid.results.writer import Writer


class Publisher:
    """Takes records, or fails as it is told."""

    def __init__(self) -> None:
        self.failure: ResultStoreError | None = None
        self.too_large: set[str] = set()
        self.published: list[str] = []
        self.patience: list[float | None] = []

    def publish(
        self, record: Record, reply_to: str | None = None, patience: float | None = None, confirmed: bool = False
    ) -> None:
        self.patience.append(patience)
        if record.id in self.too_large:
            raise RecordTooLargeError("message size 17 is larger than 16.")
        if self.failure is not None:
            raise self.failure
        self.published.append(record.id)

    def close(self) -> None:
        pass


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.sqlite3", 10, 1 << 20)


@pytest.fixture
def write(publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(writer_module, "_FULL_PAUSE", 0.01)
    return make(publisher, outbox)


def make(publisher: Publisher, outbox: Outbox, **options: Any) -> Any:
    writer = Writer(publisher, outbox, Options(**options))  # type: ignore[arg-type]
    return lambda name: writer.write(Record(name, RESULT))


def waiting(outbox: Outbox) -> list[str]:
    return [each.record.id for each in outbox.oldest(100)]


AWAY = ResultStoreUnreachableError("RabbitMQ is away.")


def test_what_rabbitmq_takes_never_sees_the_outbox(write: Any, publisher: Publisher, outbox: Outbox) -> None:
    write("a")
    assert (publisher.published, waiting(outbox)) == (["a"], [])


@pytest.mark.parametrize("failure", [AWAY, TopologyError("no stream"), ResultStoreError("refused")])
def test_whatever_the_reason_the_result_is_kept(
    failure: ResultStoreError, write: Any, publisher: Publisher, outbox: Outbox
) -> None:
    publisher.failure = failure
    write("a")
    assert waiting(outbox) == ["a"]


def test_nobody_overtakes_those_who_wait(write: Any, publisher: Publisher, outbox: Outbox) -> None:
    publisher.failure = AWAY
    write("a")
    publisher.failure = None
    write("b")
    assert (publisher.published, waiting(outbox)) == ([], ["a", "b"])
    assert len(publisher.patience) == 1


def test_the_last_one_to_come_does_not_make_others_wait(
    write: Any, publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked just before the last record was delivered."""
    looks = [True, False]
    monkeypatch.setattr(outbox, "waiting", lambda: looks.pop(0))
    write("a")
    assert (publisher.published, waiting(outbox)) == (["a"], [])


def test_an_outage_is_told_once(write: Any, publisher: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    publisher.failure = AWAY
    with caplog.at_level(logging.WARNING):
        for name in "abc":
            write(name)
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert "RabbitMQ is away." in caplog.text


def test_what_is_too_large_is_told_to_the_task(write: Any, publisher: Publisher, outbox: Outbox) -> None:
    publisher.too_large.add("a")
    with pytest.raises(RecordTooLargeError):
        write("a")
    assert waiting(outbox) == []


def test_the_event_loop_gives_rabbitmq_a_second(
    write: Any, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a")
    monkeypatch.setattr(writer_module, "must_not_wait", lambda: True)
    write("b")
    assert publisher.patience == [3.0, 1.0]


def test_a_full_outbox_makes_tasks_wait(write: Any, publisher: Publisher, outbox: Outbox) -> None:
    publisher.failure = AWAY
    for number in range(9):
        write(str(number))
    thread = threading.Thread(target=write, args=("late",))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    outbox.remove(outbox.oldest(1)[0].seq)
    thread.join(5)
    assert waiting(outbox)[-1] == "late"


def test_a_full_outbox_drops_the_oldest_when_told_so(
    publisher: Publisher, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.failure = AWAY
    write = make(publisher, outbox, outbox_full="drop_oldest")
    for number in range(11):
        write(str(number))
    assert waiting(outbox) == [str(number) for number in range(2, 11)]
    assert [text for text in caplog.messages if "is dropped" in text] == [
        f"The outbox {outbox.path} is full; the oldest record, of {number}, is dropped." for number in range(2)
    ]


def test_the_event_loop_never_waits_and_says_what_is_lost(
    write: Any, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.failure = AWAY
    monkeypatch.setattr(writer_module, "must_not_wait", lambda: True)
    for number in range(11):
        write(str(number))
    lost = [entry for entry in caplog.records if entry.levelno == logging.CRITICAL]
    assert ["of 10 is lost" in entry.getMessage() for entry in lost] == [True]


def test_the_relay_delivers_in_order_and_sets_aside_what_cannot_be(
    publisher: Publisher, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abcd":
        outbox.add(Record(name, RESULT), None)
    publisher.too_large.add("b")
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    relay.start()
    wait_until(lambda: relay.state == CLOSED and not outbox.waiting())
    relay.stop()
    assert publisher.published == ["a", "c", "d"]
    assert outbox.depth().refused == 1
    assert "of b can never be stored" in caplog.text


def test_the_relay_keeps_what_rabbitmq_does_not_take(publisher: Publisher, outbox: Outbox) -> None:
    publisher.failure = AWAY
    outbox.add(Record("a", RESULT), None)
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    relay.start()
    wait_until(lambda: relay.state == OPEN)
    assert (waiting(outbox), relay.failure) == (["a"], AWAY)
    publisher.failure = None
    wait_until(lambda: relay.state == CLOSED)
    relay.stop()
    assert (publisher.published, relay.failure) == (["a"], None)


def test_the_relay_goes_on_when_it_cannot_remove_what_it_delivered(
    publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay_module, "_BATCH", 2)
    monkeypatch.setattr(relay_module, "_IDLE_PAUSE", 60)
    for name in "abcde":
        outbox.add(Record(name, RESULT), None)

    def full(last: int) -> None:
        raise OutboxError("disk full")

    monkeypatch.setattr(outbox, "remove", full)
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    relay.start()
    wait_until(lambda: publisher.published == list("abcde"))
    relay.stop()
    assert "delivered and cannot be removed" in caplog.text


def test_one_relay_of_a_host_works(publisher: Publisher, outbox: Outbox) -> None:
    publisher.failure = AWAY
    outbox.add(Record("a", RESULT), None)
    first, second = (Relay(outbox, publisher) for _ in range(2))  # type: ignore[arg-type]
    first.start()
    wait_until(lambda: first.state == OPEN)
    asked = len(publisher.patience)
    second.start()
    wait_until(lambda: second.state == OPEN)
    assert second.failure is None
    first.stop()
    wait_until(lambda: second.failure is AWAY)
    second.stop()
    assert asked


def wait_until(condition: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)

"""A result that RabbitMQ does not take goes to the outbox, behind those that wait there already."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_hybrid.delivery import relay as relay_module
from celery_hybrid.delivery import writer as writer_module
from celery_hybrid.delivery.outbox import FullError, Outbox
from celery_hybrid.delivery.relay import CLOSED, OPEN, Relay
from celery_hybrid.delivery.writer import Writer
from celery_hybrid.errors import (
    OutboxError,
    RecordTooLargeError,
    ResultStoreError,
    ResultStoreUnreachableError,
    TopologyError,
)
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import DEAD_LETTER, RESULT, Record

BAD = b'{"status": "SUCCESS", "result": 1}'


class Publisher:
    """Takes records, or fails as it is told."""

    def __init__(self) -> None:
        self.failure: ResultStoreError | None = None
        self.too_large: set[str] = set()
        self.broken: dict[str, Exception] = {}
        self.probes = 0
        self.published: list[str] = []
        self.patience: list[float | None] = []
        self.before_publish: Callable[[], None] = lambda: None

    def publish(
        self,
        record: Record,
        reply_to: str | None = None,
        patience: float | None = None,
        confirmed: bool = False,
        attempt: int = 1,
    ) -> None:
        self.before_publish()
        self.patience.append(patience)
        if record.id in self.broken and record.body == BAD:
            raise self.broken[record.id]
        if record.id in self.too_large:
            raise RecordTooLargeError("message size 17 is larger than 16.")
        if self.failure is not None:
            raise self.failure
        self.published.append(record.id)

    def publish_all(self, batch: list[tuple[Record, str | None]]) -> Iterator[None]:
        for record, reply_to in batch:
            self.publish(record, reply_to, confirmed=True)
            yield

    def probe(self, record: Record) -> None:
        self.probes += 1
        if self.failure is not None:
            raise self.failure

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


def test_record_does_not_overtake_waiting_ones(write: Any, publisher: Publisher, outbox: Outbox) -> None:
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
        f"The outbox {outbox.path} is full; the oldest of its results, of {number}, is dropped." for number in range(2)
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
    assert not outbox.waiting()


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


def add(outbox: Outbox, name: str, status: str = "SUCCESS") -> None:
    outbox.add(Record(name, RESULT, status=status, body=BAD, content_type="application/json"), "client")


def run(relay: Relay, until: Any) -> None:
    relay.start()
    try:
        wait_until(until)
    finally:
        relay.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_IDLE_PAUSE", "_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(relay_module, name, 0.01)


NEVER = [struct.error("ubyte format requires 0 <= number <= 255"), UnicodeEncodeError("utf-8", "x", 0, 1, "no")]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", NEVER)
def test_a_record_that_no_message_can_carry_is_set_aside_and_its_task_ends(
    failure: Exception, publisher: Publisher, outbox: Outbox
) -> None:
    for name in "abc":
        add(outbox, name)
    publisher.broken["b"] = failure
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    run(relay, lambda: not outbox.holds())
    # The short failure of b comes in its place.
    assert publisher.published == ["a", "b", "c"]
    (aside,) = outbox.refused()
    assert (aside.record.id, aside.record.body, aside.reply_to) == ("b", BAD, "client")
    assert str(failure) in aside.reason


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", [AWAY, RuntimeError("unforeseen")])
def test_a_record_that_fails_while_small_ones_pass_is_set_aside(
    failure: Exception, publisher: Publisher, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        add(outbox, name)
    publisher.broken["b"] = failure
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    shown: list[str] = []
    publisher.before_publish = lambda: shown.append(str(relay.failure))
    run(relay, lambda: not outbox.holds() and relay.failure is None)
    assert publisher.published == ["a", "b", "c"]
    assert publisher.probes == 5
    assert str(failure) in shown
    assert "The result of b can never be stored" in caplog.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", [AWAY, TopologyError("no stream")])
def test_nothing_is_set_aside_while_rabbitmq_takes_nothing(
    failure: ResultStoreError, publisher: Publisher, outbox: Outbox
) -> None:
    add(outbox, "a")
    publisher.failure = failure
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    run(relay, lambda: len(publisher.patience) > 20)
    assert (waiting(outbox), outbox.depth().refused) == (["a"], 0)


@pytest.mark.usefixtures("quick")
def test_what_is_said_of_a_dead_letter_names_it(
    publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path / "letters", 10, 1 << 20, "dead letters")
    publisher.failure = AWAY
    caplog.set_level(logging.WARNING)
    letter = Record("id", DEAD_LETTER, subject="task.failed")
    Writer(publisher, outbox, Options()).write(letter)  # type: ignore[arg-type]
    for _ in range(8):
        outbox.add(letter, None)
    with pytest.raises(FullError, match="holds 9 dead letters"):
        outbox.add(letter, None)
    run(Relay(outbox, publisher), lambda: len(publisher.patience) > 3)  # type: ignore[arg-type]
    assert not [text for text in caplog.messages if "result" in text.lower()]
    assert "Dead letters go to the outbox" in caplog.text
    assert "9 dead letters (" in caplog.text


@pytest.mark.usefixtures("quick")
def test_what_a_full_disk_keeps_is_delivered_once_and_makes_nobody_wait(
    publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        add(outbox, name)
    full(monkeypatch, outbox)
    relay = Relay(outbox, publisher)  # type: ignore[arg-type]
    relay.start()
    wait_until(lambda: isinstance(relay.failure, OutboxError) and not outbox.waiting())
    make(publisher, outbox)("direct")
    steps = relay.steps
    wait_until(lambda: relay.steps > steps + 5)
    relay.stop()
    assert publisher.published == ["a", "b", "c", "direct"]
    assert outbox.depth().count == 0
    # Another process of the host, and one that starts later.
    other = Outbox(outbox.path, 10, 1 << 20)
    assert not other.waiting()
    assert other.oldest(5) == []
    monkeypatch.undo()
    run(Relay(other, publisher), lambda: not other.holds())  # type: ignore[arg-type]
    assert publisher.published == ["a", "b", "c", "direct"]
    add(other, "later")
    assert waiting(other) == ["later"]


def test_a_file_in_the_place_of_another_is_delivered_from_its_beginning(
    publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(outbox, "a")
    with outbox.progress.alone():
        outbox.remember(outbox.oldest(1)[0].seq)
    assert not outbox.waiting()
    outbox.path.unlink()
    add(outbox, "b")
    assert waiting(outbox) == ["b"]


def test_a_disk_that_is_full_does_not_make_the_event_loop_lose_a_result(
    publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(outbox, "a")
    full(monkeypatch, outbox)
    monkeypatch.setattr(writer_module, "must_not_wait", lambda: True)
    make(publisher, outbox)("b")
    assert publisher.published == ["b"]


def test_a_full_disk_is_not_asked_without_a_pause_when_the_oldest_may_be_dropped(
    publisher: Publisher, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(outbox, "a")
    full(monkeypatch, outbox)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            outbox.remove(outbox.oldest(1)[0].seq)

    monkeypatch.setattr(outbox, "_change_even_if_full", Outbox._change_even_if_full.__get__(outbox))
    monkeypatch.setattr(writer_module.time, "sleep", pause)
    make(publisher, outbox, outbox_full="drop_oldest")("b")
    assert (len(pauses), publisher.published) == (3, ["b"])


def full(monkeypatch: pytest.MonkeyPatch, outbox: Outbox) -> None:
    """Let the disk of an outbox be full."""

    def refuse(_: Any) -> None:
        raise OutboxError("database or disk is full")

    monkeypatch.setattr(outbox, "_free", lambda: 0)
    monkeypatch.setattr(outbox, "_change_even_if_full", refuse)


def wait_until(condition: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)

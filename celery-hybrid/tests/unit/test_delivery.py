"""Results and dead letters take the same way to RabbitMQ, each with an outbox of its own and under its own name."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_hybrid.delivery import delivery as module
from celery_hybrid.delivery.delivery import DEAD_LETTERS, RESULTS, Delivery
from celery_hybrid.delivery.outbox import FullError, Outbox
from celery_hybrid.errors import RecordTooLargeError, ResultStoreUnreachableError
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import DEAD_LETTER, RESULT, Record
from celery_hybrid.worker.control import described

RECORDS = {RESULTS: Record("id", RESULT), DEAD_LETTERS: Record("id", DEAD_LETTER, subject="task.failed")}


class Publisher:
    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.published: list[str] = []

    def publish(self, record: Record, *_: Any, **__: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.published.append(record.kind)

    def close(self) -> None:
        pass


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture(autouse=True)
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Relay, "start", lambda _: None)


@pytest.fixture(params=[RESULTS, DEAD_LETTERS])
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def delivery(what: str, publisher: Publisher, tmp_path: Path) -> Delivery:
    return make(what, publisher, Outbox(tmp_path / "outbox", 10, 1 << 20, what))


def make(what: str, publisher: Any, outbox: Outbox | None) -> Delivery:
    return Delivery(what, publisher, publisher, outbox, Options())


def count(delivery: Delivery) -> int:
    assert delivery.outbox is not None
    return delivery.outbox.depth().count


def test_record_that_rabbitmq_does_not_take_goes_to_the_outbox_only_where_tasks_run(
    delivery: Delivery, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.failure = ResultStoreUnreachableError("RabbitMQ is away.")
    record = RECORDS[delivery.what]
    with pytest.raises(ResultStoreUnreachableError):
        delivery.write(record)
    assert count(delivery) == 0
    monkeypatch.setattr(module, "runs_tasks", lambda: True)
    delivery.write(record)
    assert count(delivery) == 1


def test_record_that_is_to_be_kept_goes_to_the_outbox_in_any_process(delivery: Delivery, publisher: Publisher) -> None:
    publisher.failure = ResultStoreUnreachableError("RabbitMQ is away.")
    delivery.keep(RECORDS[delivery.what])
    assert count(delivery) == 1


def test_record_that_is_to_be_kept_goes_to_the_outbox_when_it_is_too_large(
    delivery: Delivery, publisher: Publisher
) -> None:
    publisher.failure = RecordTooLargeError("too large")
    delivery.keep(RECORDS[delivery.what])
    assert count(delivery) == 1


def test_record_is_published_where_there_is_no_outbox(what: str, publisher: Publisher) -> None:
    delivery = make(what, publisher, None)
    delivery.write(RECORDS[what])
    delivery.keep(RECORDS[what])
    delivery.serve()
    delivery.stop()
    assert len(publisher.published) == 2
    assert (delivery.depth(), delivery.failure, delivery.relay) == ({}, None, None)


def test_what_an_earlier_run_has_left_is_named(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    assert delivery.outbox is not None
    delivery.outbox.add(RECORDS[delivery.what], None)
    delivery.serve()
    assert caplog.messages == [f"The outbox {delivery.outbox.path} holds 1 {delivery.what[:-1]} of an earlier run."]


@pytest.mark.parametrize(
    ("what", "consequence"),
    [
        (RESULTS, "Tasks will block whenever RabbitMQ does not accept their results."),
        (DEAD_LETTERS, "Failed tasks will stay in Redis whenever RabbitMQ does not accept their dead letters."),
    ],
)
def test_outbox_that_cannot_be_used_is_told_with_its_consequence(
    delivery: Delivery, consequence: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Outbox, "_open", refuse)
    delivery.serve()
    assert caplog.messages == [
        f"the outbox {delivery.depth()['path']} cannot be used: unable to open database file. {consequence}"
    ]
    assert "error" in delivery.depth()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    app = Celery(set_as_current=False)
    app.conf.update(
        result_backend="amqp://me:secret@127.0.0.1:9/celery",
        result_backend_transport_options={"outbox": str(tmp_path / "outbox.sqlite3"), "outbox_max_records": 1},
    )
    yield app.backend.store
    app.backend.store.close()


def test_results_and_dead_letters_do_not_hold_each_other_up(store: Any) -> None:
    results, letters = store.outboxes
    assert results.path != letters.path
    letters.add(RECORDS[DEAD_LETTERS], None)
    with pytest.raises(FullError):
        letters.add(RECORDS[DEAD_LETTERS], None)
    results.add(RECORDS[RESULTS], None)
    assert [delivery.what for delivery in store.deliveries] == [RESULTS, DEAD_LETTERS]


def test_dead_letter_that_cannot_be_stored_is_never_called_a_result(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    letter = RECORDS[DEAD_LETTERS]
    store.keep(letter)
    with pytest.raises(FullError) as told:
        store.dead_letters_delivery.outbox.add(letter, None)
    store.dead_letters_delivery.serve()
    relay = store.dead_letters_delivery.relay
    (waiting,) = store.dead_letters_delivery.outbox.oldest(5)
    relay._set_aside(waiting, RecordTooLargeError("storing a dead letter: message size 17 is larger than 16."))
    said = [*caplog.messages, str(told.value)]
    assert not [text for text in said if "result" in text.lower()]
    assert any(text.startswith("Dead letters go to the outbox") for text in said)
    assert any("holds 1 dead letter of an earlier run" in text for text in said)
    assert any(text.startswith("The dead letter of id can never be stored: storing a dead letter") for text in said)
    assert "holds 1 dead letter, " in str(told.value)
    state = store.state()
    assert (state["outbox"]["refused"], state["dead_letters"]["refused"]) == (0, 1)
    assert "0 results (0 bytes) in the outbox; 1 dead letter refused for good" in described(state)

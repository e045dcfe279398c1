"""Finishing a chord: which attempts count, and what is waited for."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis import ConnectionPool

from celery_hybrid import testing
from celery_hybrid.broker import chord_counter as counting
from celery_hybrid.broker.chord_counter import COMPLETE, DONE, GONE, Chord, Part, RedisCounter
from celery_hybrid.errors import ResultStoreUnreachableError
from celery_hybrid.results.chords import Chords


@pytest.fixture
def app():
    app = Celery("chords", set_as_current=False)
    app.conf.update(broker_url="memory://", result_backend="amqp-memory://chords")
    yield app
    testing.clear()


class OneChord:
    """Counts the attempts to finish a complete chord, and what is sent by them."""

    def __init__(self, **known):
        self.chord = Chord(COMPLETE, tries=0, **known)
        self.sent = []
        self.refuses = None

    def load(self, _group_id):
        self.chord = replace(self.chord, tries=self.chord.tries + 1)
        return self.chord

    def excuse(self, _group_id):
        self.chord = replace(self.chord, tries=self.chord.tries - 1)

    @contextlib.contextmanager
    def capture(self):
        yield self.sent

    def finish(self, _group_id, _commands):
        if self.refuses is not None:
            raise self.refuses
        self.chord = replace(self.chord, state=DONE)
        return True


@pytest.fixture
def body(app):
    called = Counter()

    @app.task(shared=False)
    def gather(values):
        return values

    class Noted(type(gather.s())):
        def delay(self, values):
            called[str(values)] += 1

    return Noted(gather.s().set(task_id="body")), called


def test_body_waits_for_a_large_result_in_an_outbox_longer_than_the_attempts_that_count(app, body):
    signature, called = body
    counter = OneChord(parts={"large": Part("large", 0, "SUCCESS", by_id=True)}, age=600.0)
    chords = Chords(app.backend, counter)
    for _ in range(20):
        chords.finish("group", signature)
    assert not called
    app.backend.store_result("large", "x", "SUCCESS")
    chords.finish("group", signature)
    assert called == {"['x']": 1}
    assert counter.chord.state == DONE


def test_task_that_was_added_comes_behind_the_one_that_added_it_whichever_ends_first(app, body):
    signature, called = body
    chords = Chords(app.backend, OneChord(added=frozenset({"added"})))
    ends = (("added", 0, 50), ("adds", 0, 5), ("other", 1, 1))
    parts = {task_id: chords.encoded(task_id, index, "SUCCESS", value) for task_id, index, value in ends}
    chords.counter.chord = replace(chords.counter.chord, parts=parts)
    chords.finish("group", signature)
    assert called == {"[5, 50, 1]": 1}


@pytest.mark.parametrize("reachable", [True, False])
def test_body_of_a_chord_that_redis_has_lost_fails_whether_or_not_the_archive_can_be_read_in_time(
    app, body, monkeypatch, reachable
):
    signature, _ = body
    counter = OneChord()
    counter.chord = replace(counter.chord, state=GONE)

    def results(*_args, **_options):
        raise ResultStoreUnreachableError("not read in time")

    with monkeypatch.context() as patch:
        if not reachable:
            patch.setattr(app.backend.store, "results", results)
        Chords(app.backend, counter).finish("group", signature)
    assert app.AsyncResult("body").state == "FAILURE"
    assert "Redis has no count of this chord" in str(app.AsyncResult("body").result)


def test_body_fails_when_its_queue_is_refused_again_and_again(app, body):
    signature, _ = body
    counter = OneChord()
    counter.refuses = RuntimeError("WRONGTYPE")
    chords = Chords(app.backend, counter)
    for _ in range(5):
        chords.finish("group", signature)
    assert app.AsyncResult("body").state == "PENDING"
    counter.refuses = None
    chords.finish("group", signature)
    assert app.AsyncResult("body").state == "FAILURE"
    assert "not in 5 attempts" in str(app.AsyncResult("body").result)


@pytest.mark.parametrize("in_task", [True, False])
def test_task_waits_for_redis_that_cannot_be_connected_to_yet(app, monkeypatch, in_task):
    monkeypatch.setattr(counting, "runs_tasks", lambda: in_task)
    monkeypatch.setattr(counting.time, "sleep", lambda _seconds: None)
    app.conf.task_publish_retry_policy = {"max_retries": 2}
    counter, failures = RedisCounter(app, 60), [OperationalError("Redis is loading the dataset in memory")] * 5

    @contextlib.contextmanager
    def channel():
        if failures:
            raise failures.pop()
        yield SimpleNamespace(pool=ConnectionPool())

    monkeypatch.setattr(counter, "_channel", channel)
    if in_task:
        assert counter._run(lambda _channel, _client: "counted") == "counted"
    else:
        with pytest.raises(OperationalError, match="loading"):
            counter._run(lambda _channel, _client: "counted")
        assert len(failures) == 2

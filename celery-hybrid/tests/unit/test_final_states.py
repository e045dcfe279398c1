"""Every task ends in a state that everybody can read, whatever it was given, and whatever its id is made of."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import Ignore
from celery.result import GroupResult

from celery_hybrid import testing
from celery_hybrid.errors import IdError, RecordRefusedError, RecordTooLargeError
from celery_hybrid.rabbitmq.records import RESULT, Record

LIMIT = 2000


@pytest.fixture(autouse=True)
def fresh_results():
    yield
    testing.clear()


@pytest.fixture
def app(monkeypatch):
    """An application whose store takes no record of more than LIMIT bytes."""
    app = Celery("states", set_as_current=False)
    app.conf.update(broker_url="memory://", result_backend="amqp-memory://states", result_extended=True)
    app.conf.result_cache_max = -1
    publish = testing.MemoryPublisher.publish

    def limited(self, record, *args, **kwargs):
        if len(record.body) > LIMIT:
            raise RecordTooLargeError("message size is larger than configured max size.")
        publish(self, record, *args, **kwargs)

    monkeypatch.setattr(testing.MemoryPublisher, "publish", limited)
    return app


def nothing():
    """Do nothing."""


def request_of(*args):
    return SimpleNamespace(id="id", task="t", args=args, kwargs={}, group=None, parent_id=None, children=[], chord=None)


class TestTooLarge:
    def test_arguments_are_left_out(self, app):
        app.backend.store_result("id", 42, "SUCCESS", request=request_of("x" * LIMIT))
        found = app.AsyncResult("id")
        assert (found.get(timeout=5), found.name, found.args) == (42, "t", None)

    def test_so_they_are_of_an_unfinished_state(self, app):
        app.backend.store_result("id", {"done": 1}, "PROGRESS", request=request_of("x" * LIMIT))
        assert (app.AsyncResult("id").state, app.AsyncResult("id").info) == ("PROGRESS", {"done": 1})

    @pytest.mark.parametrize("request_", [None, request_of("x" * LIMIT)])
    @pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
    def test_an_exception_is_shortened(self, app, request_, state):
        app.backend.store_result("id", ValueError("x" * LIMIT), state, traceback="y" * LIMIT, request=request_)
        assert app.AsyncResult("id").state == "FAILURE"
        with pytest.raises(RecordTooLargeError, match=f"ended as {state}, which could not be stored: message size"):
            app.AsyncResult("id").get(timeout=5)

    def test_a_result_is_the_error_of_its_task(self, app):
        with pytest.raises(RecordTooLargeError):
            app.backend.store_result("id", "x" * LIMIT, "SUCCESS", request=request_of("x" * LIMIT))
        # What Celery does with it.
        app.backend.store_result("id", RecordTooLargeError("no"), "FAILURE", request=request_of("x" * LIMIT))
        with pytest.raises(RecordTooLargeError):
            app.AsyncResult("id").get(timeout=5)

    def test_a_meta_is_the_error_of_its_caller(self, app):
        app.backend.store_result("id", None, "STARTED")
        with pytest.raises(RecordTooLargeError):
            app.backend.store_result("id", "x" * LIMIT, "PROGRESS")
        assert app.AsyncResult("id").state == "STARTED"

    @pytest.mark.parametrize("serializer", ["json", "pickle"])
    def test_what_takes_its_place_has_its_content_type(self, app, serializer):
        app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
        app.backend.store_result("id", ValueError("x" * LIMIT), "FAILURE")
        with pytest.raises(RecordTooLargeError):
            app.AsyncResult("id").get(timeout=5)


class TestOddStates:
    @pytest.mark.parametrize("state", [None, 5, "", "PROGRESS", "\ud800", True])
    def test_a_state_that_is_not_text_is_read_as_with_other_backends(self, app, state):
        app.backend.store_result("id", {"m": 1}, state)
        found = app.AsyncResult("id")
        assert (found.state, found.info) == (state, {"m": 1})
        assert not app.backend.store.memory.dead_letters

    @pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
    def test_an_exception_state_with_another_meta_ends_the_wait_with_an_error(self, app, state):
        app.backend.store_result("id", {"custom": 1}, state)
        assert app.AsyncResult("id").state == state
        with pytest.raises(RecordRefusedError, match=f"not an exception, as that of {state} has to be"):
            app.AsyncResult("id").get(timeout=5)

    def test_retry_with_another_meta_is_not_pending(self, app):
        app.backend.store_result("id", {"custom": 1}, "RETRY")
        assert app.AsyncResult("id").state == "RETRY"
        assert isinstance(app.AsyncResult("id").info, RecordRefusedError)

    @pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json", "", "no/such"])
    @pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
    def test_a_refused_end_ends_the_wait(self, app, content_type, status):
        record = Record("id", RESULT, status=status, body=b"\x80no", content_type=content_type)
        app.backend.store.publisher.publish(record)
        for found in (app.AsyncResult("id"), app.AsyncResult("id")):
            assert found.ready()
            with pytest.raises(RecordRefusedError, match="The stored result of task id is refused"):
                found.get(timeout=5)
        assert len(app.backend.store.memory.dead_letters) == 1

    def test_a_refused_state_that_is_not_final_is_absent(self, app):
        app.backend.store.publisher.publish(
            Record("id", RESULT, status="STARTED", body=b"\x80", content_type="no/such")
        )
        assert app.AsyncResult("id").state == "PENDING"


class TestIds:
    def test_a_uuid_is_its_text_everywhere(self, app):
        one = uuid.uuid4()
        app.backend.store_result(one, 3, "SUCCESS")
        assert app.AsyncResult(one).get(timeout=5) == app.AsyncResult(str(one)).get(timeout=5) == 3
        assert dict(app.backend.get_many([one], timeout=5)).keys() == {one}
        app.AsyncResult(one).forget()
        assert app.AsyncResult(str(one)).state == app.AsyncResult(one).state == "PENDING"

    def test_a_group_by_its_uuid(self, app):
        one = uuid.uuid4()
        GroupResult(one, [app.AsyncResult("a")], app=app).save()
        assert GroupResult.restore(one, app=app).results == GroupResult.restore(str(one), app=app).results
        GroupResult.restore(one, app=app).delete()
        assert GroupResult.restore(str(one), app=app) is None

    def test_the_one_who_sent_it_by_uuid_is_woken(self, app):
        one = uuid.uuid4()
        task = app.task(nothing, name="states.nothing")
        sent = task.apply_async(task_id=one)
        by_text = app.AsyncResult(str(one))
        app.backend.add_pending_result(sent)
        app.backend.add_pending_result(by_text)
        request = SimpleNamespace(reply_to=app.backend.store.reply_to, args=(), kwargs={}, task="t", children=[])
        app.backend.store_result(str(one), 7, "SUCCESS", request=request)
        assert (sent.get(timeout=5), by_text.get(timeout=5)) == (7, 7)

    @pytest.mark.parametrize("task_id", ["x" * 201, "x" * 300, "ü" * 5000])
    def test_long_ids_work(self, app, task_id, monkeypatch):
        monkeypatch.setattr(f"{__name__}.LIMIT", 1 << 20)
        app.backend.store_result(task_id, 1, "SUCCESS")
        assert app.AsyncResult(task_id).get(timeout=5) == 1
        app.AsyncResult(task_id).forget()
        assert app.AsyncResult(task_id).state == "PENDING"

    @pytest.mark.parametrize("task_id", [5, b"bytes", "\ud800"])
    def test_other_ids_are_refused_where_they_enter(self, app, task_id):
        task = app.task(nothing, name="states.other")
        for use in (
            lambda: task.apply_async(task_id=task_id),
            lambda: app.AsyncResult(task_id).state,
            lambda: app.AsyncResult(task_id).get(timeout=0.1),
            lambda: app.AsyncResult(task_id).forget(),
            lambda: app.backend.store_result(task_id, 1, "SUCCESS"),
            lambda: GroupResult(task_id, [], app=app).save(),
            lambda: GroupResult.restore(task_id, app=app),
        ):
            with pytest.raises(IdError):
                use()
        assert app.backend.result_consumer._wanted == set()

    def test_one_bad_id_does_not_spoil_the_waits_of_others(self, app):
        bad = app.AsyncResult(5)
        with pytest.raises(IdError):
            bad.get(timeout=0.1)
        app.backend.store_result("good", 1, "SUCCESS")
        assert app.AsyncResult("good").get(timeout=5) == 1


def test_ignore_behind_a_state_of_ones_own(app):
    """As in a task that sets its own failure, and tells Celery to leave it alone."""

    @app.task(bind=True, name="states.own")
    def own(self):
        self.update_state(state="FAILURE", meta={"custom": 1})
        raise Ignore

    app.conf.update(task_always_eager=True, task_store_eager_result=True)
    own.apply(task_id="id")
    with pytest.raises(RecordRefusedError):
        app.AsyncResult("id").get(timeout=5, disable_sync_subtasks=False)

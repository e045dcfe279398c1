"""A request always ends: acknowledged, put back, kept as a dead letter or left in Redis, whatever fails meanwhile."""

from __future__ import annotations

import sys
import uuid
from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Reject, TaskRevokedError
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu.exceptions import OperationalError
from kombu.message import Message
from redis.exceptions import OutOfMemoryError, ResponseError

from celery_hybrid.dead_letters.letter import FAILED, LOST, REJECTED
from celery_hybrid.worker.consumer import Consumer, fault_of
from celery_hybrid.worker.request import Request


class FakeConsumer:
    """What a request asks of the consumer."""

    connection_errors = (ConnectionError,)

    def __init__(self):
        self.ended, self.kept, self.may, self.room, self.lost = [], [], True, True, False
        policy = SimpleNamespace(
            failed=True, lost_retries=0, lost_retry_delay=0, revoked=True, expects=lambda _exc: False
        )
        self.dead_letters = SimpleNamespace(policy=policy)

    def may_begin(self, _message):
        return self.may

    def is_lost(self, _message):
        return self.lost

    def settle(self, _message, requeue=None):
        self.ended.append("put back" if requeue else "acknowledged")

    def leave(self, _message):
        self.ended.append("left")

    def put_away(self, _message, reason, *_rest):
        if not self.room:
            raise ValueError("no place for letters")
        self.kept.append(reason)
        return True


class Pool:
    """Runs nothing, and may fail."""

    failure = None

    def apply_async(self, *_args, **_options):
        if self.failure:
            raise self.failure


@pytest.fixture
def consumer():
    return FakeConsumer()


@pytest.fixture
def pool():
    return Pool()


@pytest.fixture
def made(consumer, pool):
    app = Celery("slots", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="slots.task", acks_late=True)
    def task():
        pass

    def make(own=Request, run=None, send=lambda *_args, **_options: None):
        kind = type("Request", (own,), {"consumer": consumer})
        eventer = SimpleNamespace(enabled=True, send=send)
        kind = create_request_cls(kind, task, pool, "host", eventer, app=app)
        headers = {"id": uuid.uuid4().hex, "task": task.name}
        message = Message(
            b"[[], {}, {}]",
            delivery_tag="tag",
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
        )
        message.run = run
        request = kind(message, app=app, hostname="host", eventer=eventer, task=task, connection_errors=())
        state.task_reserved(request)
        return request

    yield make
    state.reserved_requests.clear()
    state.active_requests.clear()


def failure(exc):
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


def broken(*_args, **_options):
    raise ZeroDivisionError("not foreseen")


def test_success_is_acknowledged_when_its_event_fails(made, consumer):
    request = made(send=broken)
    request.on_success((False, "value", 0.1))
    assert consumer.ended == ["acknowledged"]
    assert consumer.kept == []
    assert not state.reserved_requests


@pytest.mark.parametrize("hook", ["_reason", "send_event", "_stopped"])
def test_failure_ends_as_dead_letter_when_handling_it_fails(made, consumer, hook):
    request = made()
    setattr(request, hook, broken)
    request.on_failure(failure(ValueError("no")))
    assert consumer.kept == [FAILED]
    assert consumer.ended == ["acknowledged"]
    assert not state.reserved_requests


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (OperationalError("Redis is away"), LOST),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'"), LOST),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), LOST),
        (ValueError("not of Redis"), REJECTED),
    ],
)
def test_retry_that_could_not_be_sent_is_not_a_rejected_task(made, consumer, reason, kept):
    request = made()
    request.on_failure(failure(Reject(reason, requeue=False)))
    assert consumer.kept == [kept]


def test_failure_that_cannot_be_kept_is_left_in_redis(made, consumer):
    consumer.room = False
    request = made()
    request.on_failure(failure(ValueError("no")))
    assert consumer.ended == ["left"]
    assert not state.reserved_requests


def test_time_limit_that_cannot_be_kept_is_left_in_redis(made, consumer):
    consumer.room = False
    request = made()
    request.on_timeout(False, 1)
    assert consumer.ended == ["left"]
    assert not state.reserved_requests


def test_error_of_a_hook_of_the_application_ends_the_request(made, consumer):
    class Own(Request):
        on_failure = on_timeout = broken

    for end in (
        lambda request: request.on_failure(failure(ValueError("no"))),
        lambda request: request.on_timeout(False, 1),
    ):
        consumer.ended.clear()
        end(made(Own))
        assert consumer.ended == ["acknowledged"]
    assert not state.reserved_requests


@pytest.mark.parametrize("exc", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_task_that_exits_in_a_pool_without_processes_is_lost(made, consumer, exc):
    from celery.concurrency.base import apply_target

    def target():
        raise exc

    request = made()
    apply_target(target, callback=request.on_success, accept_callback=request.on_accepted)
    assert consumer.kept == [LOST]
    assert consumer.ended == ["acknowledged"]
    assert not state.reserved_requests


def test_lost_connection_is_passed_on_after_the_end(made, consumer):
    def gone(*_args, **_options):
        raise ConnectionError("gone")

    request = made(send=gone)
    with pytest.raises(ConnectionError):
        request.on_success((False, "value", 0.1))
    assert consumer.ended == ["acknowledged"]


def test_task_that_the_pool_refuses_leaves_its_slot(made, consumer, pool):
    pool.failure = ZeroDivisionError("not foreseen")
    with pytest.raises(TaskRevokedError):
        made().execute_using_pool(pool)
    assert consumer.ended == ["acknowledged"]
    assert consumer.kept == [FAILED]


def test_task_whose_claim_is_lost_does_not_begin(made, consumer, pool):
    pool.failure = AssertionError("it has begun")
    consumer.may = False
    with pytest.raises(TaskRevokedError):
        made().execute_using_pool(pool)
    assert consumer.ended == []
    assert not state.reserved_requests


def test_start_that_cannot_be_noted_does_not_keep_a_task_from_running(made):
    request = made()
    request.send_event = broken
    request.on_accepted(1, 0.0)


def test_number_of_the_run_is_in_the_delivery_info_alone(made):
    assert made(run=17).request_dict["delivery_info"]["run"] == 17
    assert "run" not in made().request_dict["delivery_info"]


@pytest.mark.parametrize("given", [uuid.uuid4(), "x", "x" * 5000])
def test_ids_of_every_length_and_uuids_are_accepted(given):
    message = Message(
        b"[[], {}, {}]", headers={"id": given, "task": "t"}, content_type="application/json", content_encoding="utf-8"
    )
    assert fault_of(message) is None


@pytest.mark.parametrize("given", [None, "", 7, ["x"]])
def test_ids_of_other_kinds_are_refused(given):
    message = Message(
        b"[[], {}, {}]", headers={"id": given, "task": "t"}, content_type="application/json", content_encoding="utf-8"
    )
    assert "neither text nor a UUID" in fault_of(message)


class Held:
    """A message as the consumer sees it, and the channel that has it."""

    def __init__(self, age, renew):
        from celery_hybrid.broker import claims

        self.delivery_tag, self.headers, self.leased = "name", {"id": "a"}, claims.now() - age
        self.channel = SimpleNamespace(visibility_timeout=100, renew=renew, qos=SimpleNamespace())


def bare_consumer(**more):
    made = Consumer.__new__(Consumer)
    made.__dict__.update(_strays=set(), _held={}, _owed={}, settled=[], **more)
    made.settle = lambda message, requeue=None: made.settled.append((message, requeue))
    return made


def test_young_lease_is_not_renewed_before_a_task_begins():
    message = Held(49, renew=lambda _names: pytest.fail("not needed"))
    assert bare_consumer().may_begin(message)


def test_old_lease_is_renewed_before_a_task_begins():
    asked = []
    message = Held(51, renew=lambda names: asked.append(list(names)) or [])
    assert bare_consumer().may_begin(message)
    assert bare_consumer().may_begin(message)
    assert asked == [["name"]]


def test_task_with_a_lost_lease_does_not_begin(monkeypatch):
    from celery_hybrid.worker import consumer as module

    monkeypatch.setattr(module.virtual.QoS, "ack", lambda _qos, _tag: None)
    made = bare_consumer()
    message = Held(51, renew=list)
    assert not made.may_begin(message)
    assert message.channel is None
    assert made.settled == []
    assert not made.may_begin(message)


def test_task_whose_lease_cannot_be_renewed_goes_back():
    def refused(_names):
        raise ConnectionError("no Redis")

    made = bare_consumer()
    message = Held(51, renew=refused)
    assert not made.may_begin(message)
    assert made.settled == [(message, True)]


if sys.platform != "linux":
    pytestmark = pytest.mark.skip("the clock of leases is Linux'")

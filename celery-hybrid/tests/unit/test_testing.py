"""The double for applications' own tests: what it promises, it keeps without any server."""

from __future__ import annotations

import datetime
import os
import pickle
import threading
import time
import uuid

import celery.contrib.testing.tasks  # noqa: F401 - celery.ping
import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_hybrid import testing
from celery_hybrid.errors import OptionError, RecordRefusedError, ResultStoreError
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.testing import MemoryBackend


def add(x, y):
    return x + y


def total(numbers):
    return sum(numbers)


def fail(text):
    raise ValueError(text)


def hold(gate):
    """Wait until a test opens its gate."""
    assert GATES[gate].wait(20)
    return gate


def progress(self, gate):
    self.update_state(state="PROGRESS", meta={"done": 1})
    return hold(gate)


def replaced(self, x):
    raise self.replace(self.app.signature("double.add", (x, 1)))


def adding(self, x):
    self.add_to_chord(self.app.signature("double.add", (x, x)))
    return x


GATES: dict[str, threading.Event] = {}
TASKS = [
    (add, {}),
    (total, {}),
    (fail, {}),
    (hold, {}),
    (progress, {"bind": True}),
    (replaced, {"bind": True}),
    (adding, {"bind": True}),
]


def make_application(**settings):
    app = Celery("double", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        # Kombu looks for messages in memory once a second otherwise.
        broker_transport_options={"polling_interval": 0.01},
        result_backend="amqp-memory://",
        accept_content=["json"],
        # The worker of these tests takes no task of another test module.
        task_default_queue=f"double-{uuid.uuid4().hex[:8]}",
        result_extended=True,
        **settings,
    )
    for function, options in TASKS:
        app.task(name=f"double.{function.__name__}", shared=False, **options)(function)
    return app


@pytest.fixture(autouse=True)
def fresh_results():
    yield
    testing.clear()


@pytest.fixture
def make_app():
    """Make applications that are never run by a worker."""
    return make_application


@pytest.fixture(scope="module", params=["solo", "threads"])
def worked(request):
    """An application with a worker, which is a thread of this process."""
    # Looks are so far apart that nothing but a push ends a get() in time.
    app = make_application(result_backend_transport_options={"poll_interval": 100.0, "poll_interval_max": 100.0})
    with start_worker(app, pool=request.param, concurrency=4, perform_ping_check=False):
        yield app


@pytest.fixture
def task(worked):
    return lambda name: worked.tasks[f"double.{name}"]


@pytest.fixture
def gate():
    name = uuid.uuid4().hex
    GATES[name] = threading.Event()
    yield name
    GATES.pop(name).set()


def store(app, task_id, result, state="SUCCESS"):
    app.backend.store_result(task_id, result, state)


# The URL


def test_found_by_the_url(make_app):
    backend = make_app().backend
    assert type(backend) is MemoryBackend
    assert backend.as_uri() == "amqp-memory://"


def test_the_url_is_checked(make_app):
    app = make_app()
    app.conf.result_backend = "amqp-memory://user:secret@host/vhost"
    with pytest.raises(OptionError, match="amqp-memory://NAME") as caught:
        _ = app.backend
    assert "secret" not in str(caught.value)


def test_options_are_checked_as_those_of_the_real_one(make_app):
    with pytest.raises(OptionError, match="Did you mean partitions"):
        _ = make_app(result_backend_transport_options={"partition": 3}).backend


def test_applications_share_a_store_by_its_name(make_app):
    one, two, other = make_app(), make_app(), make_app()
    other.conf.result_backend = "amqp-memory://other"
    store(one, "id", 1)
    assert two.AsyncResult("id").result == 1
    assert other.AsyncResult("id").state == "PENDING"


# The rules of what holds


def test_the_first_success_holds(make_app):
    app = make_app()
    for result, state in ((1, "STARTED"), (2, "SUCCESS"), (3, "SUCCESS"), (4, "PROGRESS")):
        store(app, "id", result, state)
    assert (app.AsyncResult("id").state, app.AsyncResult("id").result) == ("SUCCESS", 2)


def test_otherwise_the_latest_holds(make_app):
    app = make_app()
    store(app, "id", {"done": 1}, "PROGRESS")
    store(app, "id", {"done": 2}, "PROGRESS")
    assert (app.AsyncResult("id").state, app.AsyncResult("id").info) == ("PROGRESS", {"done": 2})


def test_forget_hides_what_was_and_not_what_comes(make_app):
    app = make_app()
    store(app, "id", 1)
    app.AsyncResult("id").forget()
    assert app.AsyncResult("id").state == "PENDING"
    assert app.backend.store.memory.dead_letters == []  # hidden, not refused
    store(app, "id", 2)
    assert app.AsyncResult("id").result == 2


def test_a_success_that_has_expired_is_none(make_app, monkeypatch):
    app = make_app(result_expires=datetime.timedelta(minutes=1))
    store(app, "id", 1, "SUCCESS")
    # Its age counts from when it was stored, whatever the clock of its publisher says.
    late = app.backend._codec.encode("late", RESULT, {"status": "SUCCESS", "result": 1}, status="SUCCESS")
    app.backend.store.publisher.publish(Record(**{**vars(late), "timestamp": int(time.time()) - 61}))
    assert app.AsyncResult("late").state == app.AsyncResult("id").state == "SUCCESS"
    clock = time.time
    monkeypatch.setattr(testing.time, "time", lambda: clock() + 61)
    assert app.AsyncResult("id").state == "PENDING"
    store(app, "id", 2, "PROGRESS")
    assert app.AsyncResult("id").state == "PROGRESS"


def test_groups(make_app):
    app = make_app()
    saved = app.GroupResult("group", [app.AsyncResult("one"), app.AsyncResult("two")])
    saved.save()
    assert app.GroupResult.restore("group").results == saved.results
    saved.delete()
    assert app.GroupResult.restore("group") is None


def test_a_content_type_that_is_not_accepted_is_refused(make_app, caplog):
    app = make_app()
    strict = app.AsyncResult("id")
    loose = make_app(result_serializer="pickle", result_accept_content=["pickle"])
    store(loose, "id", {1, 2})
    assert loose.AsyncResult("id").result == {1, 2}
    assert strict.state == "FAILURE"
    with pytest.raises(RecordRefusedError, match="is not in result_accept_content"):
        strict.get(timeout=5)
    assert "is not in result_accept_content" in caplog.text
    ((_, letter),) = strict.backend.store.memory.dead_letters
    assert (letter.correlation_id, letter.content_type) == ("id", "application/x-python-serialize")


def test_what_the_serializer_cannot_do_fails_as_it_would(make_app):
    from kombu.exceptions import EncodeError

    with pytest.raises(EncodeError):
        store(make_app(), "id", object())


def test_compression(make_app):
    app = make_app(result_compression="gzip")
    store(app, "id", "x" * 1000)
    assert app.AsyncResult("id").result == "x" * 1000
    assert app.backend.store.archive.result("id").compression == "application/x-gzip"


@pytest.mark.parametrize("cached", [1000, -1])
def test_clear_forgets_everything(make_app, cached):
    app = make_app(result_cache_max=cached)
    sent = app.tasks["double.add"].apply_async((1, 1), task_id="id")
    request = type("Request", (), {"reply_to": app.backend.store.reply_to})()
    app.backend.store_result("id", 1, "SUCCESS", request=request)
    assert app.AsyncResult("id").state == "SUCCESS"
    testing.clear()
    assert app.AsyncResult("id").state == "PENDING"
    with pytest.raises(CeleryTimeoutError):
        sent.get(timeout=0.2)


# Waiting


def test_get_is_woken_by_another_thread(make_app):
    """By a push and not by a look into the archive, which would come after half a minute."""
    app = make_app(result_backend_transport_options={"poll_interval": 30, "poll_interval_max": 30})
    sent = app.tasks["double.add"].delay(1, 2)
    reply_to = app.backend.store.reply_to
    request = type("Request", (), {"reply_to": reply_to})()
    timer = threading.Timer(0.3, lambda: app.backend.store_result(sent.id, 3, "SUCCESS", request=request))
    timer.start()
    begun = time.monotonic()
    assert sent.get(timeout=20) == 3
    assert 0.2 < time.monotonic() - begun < 5
    timer.join()


def test_get_times_out(make_app):
    with pytest.raises(CeleryTimeoutError):
        make_app().AsyncResult("id").get(timeout=0.2)


def test_results_that_nobody_pushed_are_found(make_app):
    app = make_app()
    store(app, "id", 1)
    assert app.AsyncResult("id").get(timeout=5) == 1


def test_sending_goes_on_being_pushed_after_the_store_was_closed(make_app):
    """A worker in the same process closes it when it ends."""
    app = make_app()
    app.tasks["double.add"].delay(1, 2)
    app.backend.store.close()
    assert not app.backend.store.replies.listening
    app.tasks["double.add"].delay(1, 2)
    assert app.backend.store.replies.listening


# With a worker


def test_a_task(worked, task):
    sent = task("add").delay(2, 3)
    assert sent.get(timeout=20) == 5
    known = worked.AsyncResult(sent.id)
    assert (known.state, known.result, known.name, known.args) == ("SUCCESS", 5, "double.add", [2, 3])


def test_the_ping_of_celery(worked):
    assert worked.tasks["celery.ping"].delay().get(timeout=20) == "pong"


def test_a_failure_is_raised(task):
    with pytest.raises(ValueError, match="because"):
        task("fail").delay("because").get(timeout=20)


def test_a_custom_state_and_then_the_end(worked, task, gate):
    sent = task("progress").delay(gate)
    end = time.monotonic() + 20
    while sent.state != "PROGRESS":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert sent.info == {"done": 1}
    GATES[gate].set()
    assert sent.get(timeout=20) == gate
    assert worked.AsyncResult(sent.id).state == "SUCCESS"


def test_a_replaced_task(task):
    assert task("replaced").delay(41).get(timeout=20) == 42


def test_groups_and_chains(task):
    add = task("add")
    assert group(add.s(i, i) for i in range(10))().get(timeout=20) == [2 * i for i in range(10)]
    assert chain(add.s(1, 1), add.s(2), add.s(3))().get(timeout=20) == 7


def test_a_callback_of_then(worked, task):
    done = []
    sent = task("add").delay(1, 1)
    sent.then(lambda result: done.append(result.result))
    sent.get(timeout=20)
    assert done == [2]


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_chord_ends_soon(task, size):
    """By an event: a look would come too late."""
    header = (task("add").s(i, i) for i in range(size))
    assert chord(header, task("total").s())().get(timeout=50) == size * (size - 1)


def test_a_chord_of_groups_and_chains(task):
    add, total = task("add"), task("total")
    header = [group(add.s(1, 1), add.s(2, 2)) | total.s(), chain(add.s(1, 1), add.s(3)), add.s(10, 10)]
    assert chord(header, total.s())().get(timeout=20) == 6 + 5 + 20


def test_a_chord_whose_part_fails(task):
    sent = chord([task("add").s(1, 1), task("fail").s("because")], task("total").s())()
    with pytest.raises(ChordError, match="because"):
        # Its parent has failed with the error of the part, which get() would raise if it sees that first.
        sent.get(timeout=20, follow_parents=False)


def test_nothing_is_left_of_chords(worked, task):
    header = [task("add").s(1, 1), task("add").s(2, 2)]
    assert [chord(header, task("total").s())().get(timeout=20) for _ in range(3)] == [6, 6, 6]
    assert worked.backend.store.memory.chords == {}


def test_a_task_that_is_added_to_a_running_chord(task):
    assert chord([task("adding").s(5), task("add").s(1, 1)], task("total").s())().get(timeout=20) == 5 + 2 + 10


# Without a worker


def test_eager_tasks_are_stored(make_app):
    app = make_app(task_always_eager=True, task_store_eager_result=True)
    sent = app.tasks["double.add"].delay(1, 2)
    known = app.AsyncResult(sent.id)
    assert (known.state, known.get(timeout=5), known.name) == ("SUCCESS", 3, "double.add")
    failed = app.tasks["double.fail"].delay("because")
    assert app.AsyncResult(failed.id).state == "FAILURE"
    with pytest.raises(ValueError, match="because"):
        app.AsyncResult(failed.id).get(timeout=5)


# Forks


def test_a_child_begins_with_what_there_was_and_listens_by_itself(make_app):
    app = make_app()
    store(app, "id", 1)
    app.tasks["double.add"].delay(1, 2)
    before = app.backend.store.reply_to
    read, write = os.pipe()
    if not (pid := os.fork()):
        backend = app.backend
        answer = (app.AsyncResult("id").result, backend.store.replies.listening, backend.store.reply_to != before)
        os.write(write, repr(answer).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1000).decode() == "(1, False, True)"


def test_a_prefork_pool_is_told_that_it_cannot_work(make_app):
    import billiard

    app = make_app()
    queue = billiard.get_context("fork").SimpleQueue()

    def store_in_child():
        try:
            store(app, "id", 1)
        except ResultStoreError as exc:
            queue.put(str(exc))
        else:
            queue.put("stored")

    child = billiard.get_context("fork").Process(target=store_in_child)
    child.start()
    assert "--pool solo or --pool threads" in queue.get()
    child.join()


def test_a_pickled_result_comes_back(make_app):
    app = make_app()
    app.set_current()
    store(app, "id", 1)
    restored = pickle.loads(pickle.dumps(app.AsyncResult("id")))  # noqa: S301
    assert restored.get(timeout=5) == 1

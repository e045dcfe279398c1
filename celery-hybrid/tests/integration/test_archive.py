"""The archive itself: durability, consistency, bounds, strictness."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid

import amqp
import pytest
from celery import states
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_hybrid.archive.index import KnownOutcome
from celery_hybrid.errors import ResultStoreUnreachableError
from celery_hybrid.names import partition_of
from celery_hybrid.rabbitmq import topology, urls
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import RESULT, Record

pytestmark = pytest.mark.integration


def new_id():
    return str(uuid.uuid4())


def ids_of_partition(partition, count, partitions):
    found = []
    while len(found) < count:
        candidate = new_id()
        if partition_of(candidate, partitions) == partition:
            found.append(candidate)
    return found


@pytest.fixture
def partitions(app):
    return app.backend.options.partitions


@pytest.fixture
def connect(results_url):
    connections = []

    def made():
        servers, _ = urls.parse(results_url)
        connections.append(Servers(servers, Options()).connect("test"))
        return connections[-1]

    yield made
    for connection in connections:
        connection.close()


@pytest.mark.timeout(300)
def test_read_your_writes_while_others_write(make_app):
    """What is confirmed is seen by a reader that looks afterwards, at once."""
    writer, reader = make_app().backend, make_app(result_cache_max=-1).backend
    stop = threading.Event()

    def noise():
        backend = make_app().backend
        while not stop.is_set():
            backend.store_result(new_id(), "x" * 200, states.SUCCESS)
            time.sleep(0.002)

    threads = [threading.Thread(target=noise) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            task_id = new_id()
            writer.store_result(task_id, number, states.SUCCESS)
            assert reader.get_result(task_id) == number
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_chunks_that_are_larger_than_the_prefetch(app, connect, partitions):
    """Without confirms RabbitMQ puts thousands of messages into one chunk."""
    partition = 3 % partitions
    ids = ids_of_partition(partition, 4000, partitions)
    reader = app.backend
    assert reader.get_state(ids[0]) == states.PENDING
    connection = connect()
    # The unconfirmed publish that Channel.basic_publish is replaced by when confirms are on.
    channel = connection.channel()
    for task_id in ids:
        record = reader._codec.encode(task_id, RESULT, {"status": "SUCCESS", "result": task_id}, "SUCCESS")
        channel._basic_publish(record.to_message(), "celery.results", topology.archive_stream(partition))
    reader.store_result(last := ids_of_partition(partition, 1, partitions)[0], 1, states.SUCCESS)
    assert reader.get_result(last) == 1
    found = reader.store.archive.results(ids)
    assert set(found) == set(ids)


def test_a_fresh_reader_finds_everything(app, make_app):
    ids = [new_id() for _ in range(200)]
    for number, task_id in enumerate(ids):
        app.backend.store_result(task_id, number, states.SUCCESS)
    reader = make_app().backend
    assert [reader.get_result(task_id) for task_id in ids] == list(range(200))


def test_the_first_success_wins(app, make_app):
    task_id = new_id()
    for result, state in [(None, "STARTED"), (1, "SUCCESS"), (2, "SUCCESS"), (None, "STARTED")]:
        app.backend.store_result(task_id, result, state)
    assert make_app().backend.get_task_meta(task_id)["result"] == 1


def test_a_success_overrides_a_failure(app):
    task_id = new_id()
    app.backend.store_result(task_id, ValueError("x"), "FAILURE")
    assert app.AsyncResult(task_id).failed()
    app.backend.store_result(task_id, 1, "SUCCESS")
    assert app.AsyncResult(task_id).result == 1


def test_the_index_is_bounded_and_what_it_forgot_is_read_again(make_app, app):
    options = {**app.conf.result_backend_transport_options, "index_bytes": 64 * 1024}
    small = make_app()
    small.conf.result_backend_transport_options = options
    small.conf.result_cache_max = -1
    backend = small.backend
    ids = [new_id() for _ in range(150)]
    for number, task_id in enumerate(ids):
        app.backend.store_result(task_id, [number, "x" * 1000], states.SUCCESS)
    assert set(backend.store.archive.results(ids[50:])) == set(ids[50:])
    for number, task_id in enumerate(ids[:20]):
        assert backend.get_result(task_id)[0] == number
        assert backend.store.archive.index.size <= 64 * 1024
    # Later records of what was forgotten do not hide the first success.
    app.backend.store_result(ids[0], None, "STARTED")
    assert backend.get_state(ids[0]) == states.SUCCESS
    app.backend.forget(ids[1])
    assert backend.get_state(ids[1]) == states.PENDING
    assert backend.get_state(new_id()) == states.PENDING


def test_many_readings_of_what_was_forgotten_do_not_hang(make_app, app):
    small = make_app(result_cache_max=-1)
    small.conf.result_backend_transport_options = {
        **app.conf.result_backend_transport_options,
        "index_bytes": 64 * 1024,
    }
    ids = [new_id() for _ in range(60)]
    for task_id in ids:
        app.backend.store_result(task_id, "x" * 2000, states.SUCCESS)
    found = small.backend.store.archive.results(ids)
    assert set(found) == set(ids)


def test_expired_results_are_invisible(make_app):
    app = make_app(result_expires=2, result_cache_max=-1)
    task_id = new_id()
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).state == states.SUCCESS
    time.sleep(3.5)
    assert app.AsyncResult(task_id).state == states.PENDING
    fresh = make_app(result_expires=2)
    assert fresh.AsyncResult(task_id).state == states.PENDING
    assert make_app(result_expires=3600).AsyncResult(task_id).state == states.SUCCESS


def test_a_stream_in_which_everything_is_expired(app, make_app):
    """Its last chunk lies before the time at which reading begins."""
    task_id = new_id()
    app.backend.store_result(task_id, 1, states.SUCCESS)
    time.sleep(2)
    begun = time.monotonic()
    assert make_app(result_expires=1).AsyncResult(task_id).state == states.PENDING
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("fresh", [False, True])
def test_a_wrong_content_type_is_refused(app, make_app, caplog, fresh):
    task_id = new_id()
    if not fresh:
        assert app.AsyncResult(task_id).state == states.PENDING
    import pickle

    body = pickle.dumps({"status": "SUCCESS", "result": 1, "task_id": task_id})
    app.backend.store.publisher.publish(
        Record(task_id, RESULT, status="SUCCESS", body=body, content_type="application/x-python-serialize")
    )
    with caplog.at_level(logging.ERROR):
        # It is final all the same: a caller that waits gets an error, and does not wait indefinitely.
        assert app.AsyncResult(task_id).state == states.FAILURE
        assert app.AsyncResult(task_id).state == states.FAILURE
    said = [record.getMessage() for record in caplog.records if task_id in record.getMessage()]
    assert len(said) == 1
    assert "application/x-python-serialize" in said[0]
    assert app.backend.store.refusals.counts["application/x-python-serialize"] == 1
    trusting = make_app(result_accept_content=["pickle", "json"])
    assert trusting.AsyncResult(task_id).result == 1


def test_what_cannot_be_decoded_is_refused(app, caplog):
    task_id = new_id()
    app.backend.store.publisher.publish(
        Record(task_id, RESULT, status="SUCCESS", body=b"{", content_type="application/json", content_encoding="utf-8")
    )
    with caplog.at_level(logging.ERROR):
        assert app.AsyncResult(task_id).state == states.FAILURE
    assert task_id in caplog.text


def test_something_that_is_not_an_exception_is_not_called(app, caplog):
    task_id = new_id()
    meta = {"status": "FAILURE", "result": {"exc_module": "os", "exc_type": "system", "exc_message": "true"}}
    app.backend.store.publisher.publish(app.backend._codec.encode(task_id, RESULT, meta, "FAILURE"))
    with caplog.at_level(logging.ERROR):
        assert app.AsyncResult(task_id).state == states.FAILURE
    assert task_id in caplog.text


def test_compressed_results_are_read_by_anybody(make_app, app):
    task_id = new_id()
    make_app(result_compression="gzip").backend.store_result(task_id, "x" * 10_000, states.SUCCESS)
    assert app.AsyncResult(task_id).result == "x" * 10_000
    assert len(app.backend.store.archive.result(task_id).body) < 1000


def test_large_results(app, make_app):
    task_id = new_id()
    app.backend.store_result(task_id, "x" * 3_000_000, states.SUCCESS)
    assert len(make_app().AsyncResult(task_id).result) == 3_000_000


def test_many_threads_store_through_one_connection(app, make_app):
    ids = [[new_id() for _ in range(50)] for _ in range(8)]

    def store(mine):
        for task_id in mine:
            app.backend.store_result(task_id, task_id, states.SUCCESS)

    threads = [threading.Thread(target=store, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [task_id for mine in ids for task_id in mine]
    found = make_app().backend.store.archive.results(everything)
    assert set(found) == set(everything)


def test_threads_that_read_share_the_reading(app, make_app):
    ids = [new_id() for _ in range(20)]
    for task_id in ids:
        app.backend.store_result(task_id, 1, states.SUCCESS)
    reader = make_app()
    states_seen = []
    threads = [
        threading.Thread(target=lambda i=task_id: states_seen.append(reader.AsyncResult(i).state)) for task_id in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states_seen == [states.SUCCESS] * 20


def test_clients_may_not_declare_what_is_not_theirs(connect):
    connection = connect()
    for declare in (
        lambda channel: channel.queue_declare(f"other.{new_id()}", durable=True),
        lambda channel: channel.exchange_declare(f"other.{new_id()}", "direct"),
        lambda channel: channel.queue_delete("celery.results.0"),
    ):
        with pytest.raises(amqp.exceptions.AccessRefused):
            declare(connection.channel())


def test_clients_may_not_write_dead_letters(connect):
    connection = connect()
    connection.channel().basic_publish(amqp.Message("x"), "celery.dlx", "x")
    with pytest.raises(amqp.exceptions.AccessRefused):
        connection.drain_events(timeout=5)


def read_ahead(app):
    """Wait until all partitions of an application's archive were read."""
    archive = app.backend.store.archive
    end = time.monotonic() + 60
    while archive._warming is None or archive._warming.is_alive():
        assert time.monotonic() < end
        time.sleep(0.05)
    return archive


def test_the_other_partitions_are_read_ahead(app, make_app):
    ids = [new_id() for _ in range(100)]
    for number, task_id in enumerate(ids):
        app.backend.store_result(task_id, number, states.SUCCESS)
    reader = make_app()
    assert reader.AsyncResult(ids[0]).result == 0
    archive = read_ahead(reader)
    # A full one is never taken for empty.
    used = {partition_of(task_id, len(archive._partitions)) for task_id in ids}
    assert all(archive._partitions[number].next_offset is not None for number in used)
    assert [reader.AsyncResult(task_id).result for task_id in ids] == list(range(100))


def test_nothing_is_read_ahead_where_nobody_asked_by_id(in_process):
    answer = in_process(
        "sent = app.send_task('hybrid.nobody', queue='nobody', expires=1)\n"
        "archive = app.backend.store.archive\n"
        "answer = [archive._warming is not None, archive._link.connected]\n"
        "try:\n"
        "    sent.get(timeout=4)\n"
        "except Exception as exc:\n"
        "    answer += [type(exc).__name__, archive._warming is not None, archive._link.connected]"
    )
    assert answer == [False, False, "TimeoutError", False, True]


def test_a_worker_reads_only_what_it_is_asked_for(in_process):
    answer = in_process(
        "from celery import current_app\n"
        "from celery._state import _task_stack\n"
        "_task_stack.push(app.tasks['hybrid.add'])\n"
        "assert app.AsyncResult('nobody has sent this').state == 'PENDING'\n"
        "archive = app.backend.store.archive\n"
        "answer = [sum(p.next_offset is not None for p in archive._partitions), archive._warming is not None]"
    )
    assert answer == [1, False]


def test_results_of_lately_are_found_without_reading_what_is_older(app, make_app, partitions):
    old, new = ids_of_partition(0, 2, partitions)
    app.backend.store_result(old, "old", states.SUCCESS)
    time.sleep(3)  # RabbitMQ keeps the time in seconds
    app.backend.store_result(new, "new", states.SUCCESS)
    store = make_app().backend.store
    assert set(store.results_of([new], 1, timeout=20)) == {new}
    assert not store.archive._partitions[0].complete
    assert store.archive.index.find((RESULT, old), 0, {}) == KnownOutcome(None)
    # As when this host's clock is ahead.
    assert set(store.results_of([old, new], -60, timeout=20)) == {old, new}


def test_a_fork_while_reading_ahead(in_process):
    answer = in_process(
        "import os\n"
        "app.backend.store_result('forked', 7, 'SUCCESS')\n"
        "assert app.AsyncResult('forked').result == 7\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    app.backend._cache.clear()\n"
        "    os.write(write, str(app.AsyncResult('forked').result).encode())\n"
        "    os._exit(0)\n"
        "answer = [os.read(read, 9).decode(), app.AsyncResult('forked').result]"
    )
    assert answer == ["7", 7]


def test_a_record_that_was_dropped_is_fetched_from_its_offset(app, make_app):
    """The index keeps where everything is; the whole records only of what was asked for."""
    ids = [new_id() for _ in range(60)]
    for number, task_id in enumerate(ids):
        app.backend.store_result(task_id, number, states.SUCCESS)
    reader = make_app(result_cache_max=-1)
    assert reader.AsyncResult(ids[0]).result == 0
    archive = read_ahead(reader)
    assert len(archive.index) < 60
    archive._read_again = None
    assert set(archive.results(ids)) == set(ids)
    app.backend.store_result(ids[1], None, "STARTED")
    app.backend.forget(ids[2])
    assert reader.AsyncResult(ids[1]).result == 1
    assert reader.AsyncResult(ids[2]).state == states.PENDING


@pytest.fixture
def stopped(shell):
    """Stop RabbitMQ's process within a block: the kernel still accepts connections, and nobody answers."""

    @contextlib.contextmanager
    def stop():
        shell("kill -STOP $(pgrep -x beam.smp)")
        try:
            yield
        finally:
            shell("kill -CONT $(pgrep -x beam.smp)")

    return stop


@pytest.mark.parametrize("connected", [False, True])
def test_timeouts_hold_when_rabbitmq_does_not_answer(app, make_app, stopped, connected):
    app.backend.store_result(task_id := new_id(), 1, states.SUCCESS)
    reader = make_app(result_cache_max=-1)
    if connected:
        assert reader.AsyncResult(task_id).result == 1
    archive = reader.backend.store.archive
    with stopped():
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(ResultStoreUnreachableError):
                archive.results([task_id], timeout=1)
            assert 0.9 < time.monotonic() - begun < 2  # not socket_timeout; 1.1 where nothing else runs
            begun = time.monotonic()
            with pytest.raises(CeleryTimeoutError):
                reader.AsyncResult(task_id).get(timeout=1)
            assert 0.9 < time.monotonic() - begun < 2  # not socket_timeout; 1.1 where nothing else runs
    assert reader.AsyncResult(task_id).get(timeout=10) == 1


def test_closing_while_reading_ahead_closes_the_connection_in_order(make_app, app, partitions, shell):
    """RabbitMQ, which is sending then, logs an error otherwise."""
    for number in range(partitions):
        for task_id in ids_of_partition(number, 40, partitions):
            app.backend.store_result(task_id, "x" * 20_000, states.SUCCESS)
    log = "cat /var/log/rabbitmq/rabbit@*.log | grep -c inet_error || true"
    before = int(shell(log))
    for number in range(12):
        reader = make_app(result_cache_max=-1).backend
        assert reader.get_state(task_id) == states.SUCCESS
        time.sleep(0.02 * number)
        reader.store.close()
        assert not reader.store.archive._link.connected
    assert int(shell(log)) == before

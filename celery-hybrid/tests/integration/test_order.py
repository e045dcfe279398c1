"""Which record of a task holds: the same for all readers, whatever arrives late, twice or with a wrong clock."""

from __future__ import annotations

import dataclasses
import time
import uuid

import pytest
from celery import states
from celery.app.task import Context

from celery_hybrid.names import archive_stream, partition_of
from celery_hybrid.rabbitmq.records import RESULT
from celery_hybrid.results.replies import Mailbox
from celery_hybrid.results.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(240)]


def new_id():
    return str(uuid.uuid4())


@pytest.fixture
def neighbours(app):
    """Return ids that lie in one partition."""

    def of(count):
        partitions = app.backend.options.partitions
        first = new_id()
        number = partition_of(first, partitions)
        found = [first]
        while len(found) < count:
            candidate = new_id()
            if partition_of(candidate, partitions) == number:
                found.append(candidate)
        return found

    return of


def stored(app, task_id, **fields):
    """Publish the record of a SUCCESS as any host would."""
    meta = {"status": states.SUCCESS, "result": 1, "task_id": task_id, "traceback": None, "children": []}
    record = app.backend._codec.encode(task_id, RESULT, meta, states.SUCCESS)
    app.backend.store.publisher.publish(dataclasses.replace(record, **fields))


def run_of(task_id, run):
    """Return the request of a run of a task."""
    return Context(id=task_id, retries=run - 1, delivery_info={"run": run}, args=[], kwargs={})


def test_late_record_of_a_slow_clock_hides_nothing(app, make_app, neighbours):
    live, late, later = neighbours(3)
    stored(app, live)
    stored(app, late, timestamp=int(time.time()) - 7200)
    fresh = make_app(result_expires=3600)
    assert fresh.AsyncResult(live).state == states.SUCCESS
    # It was stored just now, whatever its publisher's clock says.
    assert fresh.AsyncResult(late).state == states.SUCCESS
    stored(app, later)
    assert fresh.AsyncResult(later).state == states.SUCCESS
    assert make_app(result_expires=3600).AsyncResult(live).state == states.SUCCESS


@pytest.mark.parametrize("ahead", [900, -900])
def test_wrong_clock_of_a_client_does_not_hide_its_own_results(worker, task, make_app, monkeypatch, ahead):
    """Not even when nothing is pushed to it."""
    monkeypatch.setattr(Mailbox, "deliver", lambda self, record: None)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)
    app = task("add").app
    sent = task("add").delay(2, 3)
    other = make_app()
    while other.AsyncResult(sent.id).state != states.SUCCESS:
        time.sleep(0.2)
    # So that it is not among the last that were stored.
    partitions = app.backend.options.partitions
    number = partition_of(sent.id, partitions)
    neighbour = next(each for each in iter(new_id, "") if partition_of(each, partitions) == number)
    stored(other, neighbour, timestamp=int(clock()))
    assert sent.get(timeout=30) == 5
    assert task("add").app.AsyncResult(sent.id).state == states.SUCCESS


def test_id_used_again_after_its_expiry_is_seen_by_a_reader_that_lives_on(make_app):
    app = make_app(result_expires=2)
    task_id = new_id()
    app.backend.store_result(task_id, "monday", states.SUCCESS)
    assert app.AsyncResult(task_id).result == "monday"
    time.sleep(3.5)
    app.backend.store_result(task_id, ValueError("tuesday"), states.FAILURE)
    assert app.AsyncResult(task_id).state == states.FAILURE
    assert make_app(result_expires=2).AsyncResult(task_id).state == states.FAILURE


def test_what_an_earlier_run_delivers_late_changes_nothing(app, make_app):
    reader = make_app()
    failed, forgotten = new_id(), new_id()
    for task_id in (failed, forgotten):
        app.backend.store_result(task_id, None, states.STARTED, request=run_of(task_id, 1))
        app.backend.store_result(task_id, ValueError("x"), states.FAILURE, request=run_of(task_id, 2))
    assert reader.AsyncResult(failed).state == states.FAILURE
    app.backend.forget(forgotten)
    for task_id in (failed, forgotten):
        app.backend.store_result(task_id, ValueError("x"), states.RETRY, request=run_of(task_id, 1))
        app.backend.store_result(task_id, {"pid": 1}, states.STARTED, request=run_of(task_id, 2))
    for each in (reader, make_app()):
        assert each.AsyncResult(failed).state == states.FAILURE
        assert each.AsyncResult(forgotten).state == states.PENDING
    app.backend.store_result(forgotten, 1, states.SUCCESS, request=run_of(forgotten, 3))
    assert reader.AsyncResult(forgotten).state == states.SUCCESS


def test_records_carry_the_runs_of_their_task(app, worker_class, tmp_path, monkeypatch):
    queue = f"order-{new_id()[:8]}"
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", queue)
    worker = worker_class("prefork", tmp_path / "log", "-c", "1", "-Q", queue, app="dead_letter_tasks")
    try:
        worker.wait_ready()
        sent = app.send_task("letters.retry", (str(tmp_path / "ran"),), queue=queue)
        with pytest.raises(ValueError, match="still no good"):
            sent.get(timeout=30)
    finally:
        worker.stop()
    failed = app.backend.store.archive.result(sent.id)
    assert (failed.status, failed.retries) == (states.FAILURE, 1)
    # What the first run delivers late changes nothing; a new run would.
    app.backend.store_result(sent.id, None, states.STARTED, request=run_of(sent.id, failed.run - 1))
    assert app.AsyncResult(sent.id).state == states.FAILURE
    app.backend.store_result(sent.id, None, states.STARTED, request=run_of(sent.id, failed.run + 1))
    assert app.AsyncResult(sent.id).state == states.STARTED


def test_reader_notices_that_a_stream_was_cut(make_app, shell, neighbours):
    """A power failure takes the last records, and their offsets are given to others."""
    reader, writer = make_app(result_cache_max=-1), make_app()
    ids = neighbours(30)
    old, lost, new = ids[:5], ids[5:10], ids[10:]
    name = archive_stream(partition_of(ids[0], writer.backend.options.partitions))
    for each in old:
        writer.backend.store_result(each, 1, states.SUCCESS)
    shell("systemctl stop rabbitmq-server")
    pattern = f"{shell.vhost}_{name.replace('.', '_')}_*"
    folder = shell(f"ls -d /var/lib/rabbitmq/mnesia/*/stream/{pattern}").split()[0]
    shell(f"rm -rf /tmp/stream && cp -a {folder} /tmp/stream && systemctl start rabbitmq-server")
    shell.ctl("await_startup")
    for each in lost:
        writer.backend.store_result(each, 1, states.SUCCESS)
    assert [reader.AsyncResult(each).state for each in (old[0], lost[-1])] == [states.SUCCESS] * 2
    shell(f"systemctl stop rabbitmq-server && rm -rf {folder} && cp -a /tmp/stream {folder}")
    shell("systemctl start rabbitmq-server")
    shell.ctl("await_startup")
    for each in new:
        writer.backend.store_result(each, 1, states.SUCCESS)
    found = reader.backend.store.archive.results(ids)
    assert set(found) == {*old, *new}


def test_get_of_a_chain_and_a_chord_reads_nothing_older(worker, app, in_process):
    """Not even its parents are looked for further back than the task was sent."""
    for _ in range(100):
        app.backend.store_result(new_id(), 1, states.SUCCESS)
    answer = in_process(
        "from celery import chain, chord\n"
        "add, total = app.tasks['hybrid.add'], app.tasks['hybrid.total']\n"
        "answer = [chain(add.s(1, 1), add.s(1), add.s(1)).delay().get(timeout=60)]\n"
        "answer += [chord((add.s(n, n) for n in range(20)), total.s()).delay().get(timeout=60)]\n"
        "archive = app.backend.store.archive\n"
        "answer += [archive._warming is None]\n"
        "answer += [any(p.complete for p in archive._partitions if p.next_offset is not None)]"
    )
    assert answer == [4, 380, True, False]


def test_result_that_cannot_be_looked_up_fails_its_own_waiter_only(worker, task, monkeypatch):
    odd = task("add").app.AsyncResult("odd")
    look = Store.results

    def results(self, task_ids, **options):
        if odd.id in task_ids:
            raise RuntimeError("odd")
        return look(self, task_ids, **options)

    monkeypatch.setattr(Store, "results", results)
    odd.then(lambda result: None)
    # So that the archive is asked for both of them.
    monkeypatch.setattr(Mailbox, "deliver", lambda self, record: None)
    assert task("add").delay(2, 2).get(timeout=30) == 4
    with pytest.raises(RuntimeError, match="odd"):
        odd.get(timeout=5)


def test_event_loop_of_a_worker_asks_for_a_second_at_most(app, monkeypatch):
    asked = []

    def results(task_ids, timeout=None, **_):
        asked.append(timeout)
        return {}

    monkeypatch.setattr("celery_hybrid.results.backend.must_not_wait", lambda: True)
    monkeypatch.setattr(app.backend.store.archive, "results", results)
    assert app.AsyncResult(new_id()).state == states.PENDING
    assert asked == [1.0]

"""RabbitMQ or Redis is away while tasks run: no result is lost, and workers go on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(240)]


@pytest.fixture
def stopped(shell):
    """Stop services of the host; they run again when the test ends."""
    names = []

    def stop(name):
        names.append(name)
        shell(f"systemctl stop {name}")

    yield stop
    for name in names:
        shell(f"systemctl start {name}")
    shell.ctl("await_startup")


@pytest.fixture
def own_state(tmp_path, monkeypatch):
    """An outbox for the workers of this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def celery(*arguments):
    command = [sys.executable, "-m", "celery", "-A", "hybrid_tasks", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)


def state_of(worker):
    (state,) = json.loads(celery("inspect", "result_store", "-j", "-t", "5", "-d", worker.name).stdout).values()
    return state


def depth(worker):
    return state_of(worker)["outbox"]["count"]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_workers_go_on_while_rabbitmq_is_away(own_state, other_worker, make_app, shell, stopped, tmp_path, pool):
    worker = other_worker(pool, "-c", "2")
    app = make_app()
    add, note = app.tasks["hybrid.add"], app.tasks["hybrid.note"]
    assert add.delay(1, 1).get(timeout=20) == 2
    stopped("rabbitmq-server")
    path = tmp_path / "ran"
    sent = [note.delay(str(number), str(path)) for number in range(50)]
    wait_until(lambda: path.exists() and len(path.read_text().split()) == 50)
    # Two records of each: STARTED and SUCCESS.
    wait_until(lambda: depth(worker) == 100, 30)
    said = celery("result-store", "-t", "3").stdout
    assert "circuit to" in said
    assert "100 results" in said
    assert "no answer in time" in said or "Connection refused" in said
    shell("systemctl start rabbitmq-server")
    assert [result.get(timeout=60) for result in sent] == [None] * 50
    wait_until(lambda: depth(worker) == 0)
    records = app.backend.store.archive.results([result.id for result in sent])
    assert {record.status for record in records.values()} == {"SUCCESS"}
    log = worker.log.read_text()
    assert "Results go to the outbox" in log
    assert "RabbitMQ accepts results again: delivered 100 from the outbox" in log
    assert "Traceback" not in log
    # Each ran once.
    assert sorted(path.read_text().split(), key=int) == [str(number) for number in range(50)]


def test_a_killed_worker_delivers_when_it_starts_again(own_state, other_worker, make_app, shell, stopped, tmp_path):
    worker = other_worker("prefork", "-c", "1")
    app = make_app()
    assert app.tasks["hybrid.add"].delay(1, 1).get(timeout=20) == 2
    stopped("rabbitmq-server")
    path = tmp_path / "ran"
    sent = app.tasks["hybrid.note"].delay("once", str(path))
    wait_until(lambda: depth(worker) == 2, 30)
    worker.process.kill()
    worker.process.wait()
    shell("systemctl start rabbitmq-server")
    again = other_worker("prefork", "-c", "1")
    assert sent.get(timeout=60) is None
    assert " of an earlier run." in again.log.read_text()
    assert path.read_text() == "once\n"


def test_results_reach_rabbitmq_while_redis_is_away(own_state, other_worker, make_app, stopped, tmp_path):
    other_worker("prefork", "-c", "1")
    app = make_app()
    go = tmp_path / "go"
    sent = app.tasks["hybrid.wait_for_file"].delay(str(go), 120)
    wait_until(lambda: app.AsyncResult(sent.id).state == "STARTED", 30)
    stopped("redis-server")
    go.touch()
    assert sent.get(timeout=30) == "found"


def test_a_chord_is_completed_by_the_next_worker(own_state, other_worker, make_app, tmp_path):
    first = other_worker("prefork", "-c", "1")
    app = make_app()
    add, total, wait = (app.tasks[f"hybrid.{name}"] for name in ("add", "total", "wait_for_file"))
    go = tmp_path / "go"
    from celery import chain, chord

    held = chain(wait.si(str(go), 120), add.si(20, 20))
    result = chord([add.s(1, 1), add.s(2, 2), held], total.s()).delay()
    # Redis may hold chords that other tests have left.
    wait_until(lambda: '"ended": 2' in celery("inspect", "result_store", "-j", "-t", "3").stdout, 30)
    other_worker("prefork", "-c", "1")
    first.process.terminate()
    go.touch()
    assert result.get(timeout=60) == 46

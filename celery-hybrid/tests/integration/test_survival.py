"""Redis is restarted, killed, cut off, while a task runs and others wait for their time: each runs once."""

from __future__ import annotations

import time

import pytest
import redis
from environment import needed
from runs import AGAIN, LOAD, come_back, each_pool, end, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def app(results_url, broker_url):
    from dead_letter_tasks import app

    yield app
    from celery_hybrid.results.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


@pytest.fixture
def runs(app, worker_class, tmp_path, monkeypatch):
    with each_pool(app, worker_class, tmp_path, monkeypatch) as runs:
        yield runs


def restart(shell, app):
    # The append-only file is written each second.
    shell("sleep 1.5; systemctl restart redis-server")


def kill(shell, app):
    shell("sleep 1.5; systemctl kill -s KILL redis-server; sleep 2; systemctl start redis-server")


def kill_connections(shell, app):
    with redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN")) as server:
        assert server.execute_command("CLIENT", "KILL", "USER", "celery") > 0


def freeze(shell, app):
    shell("systemctl kill -s STOP redis-server; sleep 12; systemctl kill -s CONT redis-server")


def refuse(shell, app):
    """Write nothing, as when the disk is full."""
    with redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN")) as server:
        server.config_set("min-replicas-to-write", 1)
        time.sleep(3)
        server.config_set("min-replicas-to-write", 0)


def test_each_task_runs_once(app, runs, shell):
    """Through one fault after the other; all together take longer than the visibility timeout."""
    begun = time.monotonic()
    for number, fault in enumerate((restart, kill, kill_connections, freeze, refuse)):
        later = [run.send("letters.work", f"later-{number}", countdown=5) for run in runs]
        # Received, and on the disk of Redis.
        time.sleep(1)
        fault(shell, app)
        come_back(runs, number, fault)
        for result in later:
            result.get(timeout=30)
        for run in runs:
            run.each_ran_once()
    for run in runs:
        # A server that only stops for a while may have answered the second question.
        assert run.worker.log.read_text().count("Connected again: ") >= 3
    wait_until(lambda: time.monotonic() - begun > 25, 30)
    end(app, runs)


def test_a_retry_that_cannot_be_sent(app, runs, shell):
    """A task that wants to run again while Redis is away is not a dead letter: it runs again when Redis is back."""
    results = [run.send("letters.retry_when", "retry", str(run.path / "away")) for run in runs]
    for run in runs:
        wait_until((run.path / "retry.waits").exists, 20)
    shell("sleep 1.5; systemctl stop redis-server")
    try:
        for run in runs:
            (run.path / "away").touch()
        time.sleep(4)  # Celery tries for less than a second
    finally:
        shell("systemctl start redis-server")
    for result in results:
        result.get(timeout=AGAIN + LOAD)
    for run in runs:
        assert (run.path / "retry").read_text() == "ran\n" * 2
        run.names.remove("retry")
    end(app, runs)

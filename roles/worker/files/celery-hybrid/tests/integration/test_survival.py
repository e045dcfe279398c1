"""Redis is restarted, killed, cut off, while a task runs and others wait for their time: each runs once."""

from __future__ import annotations

import time
import uuid

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

#: A worker shall consume again within this time.
AGAIN = 30
LOAD = 15  # of a busy machine, on top


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def app(results_url, broker_url):
    from dead_letter_tasks import app

    yield app
    from celery_hybrid.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


@pytest.fixture
def own_queue(app, monkeypatch):
    """A queue for the worker of this test alone."""
    name = f"survival-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", name)
    return name


@pytest.fixture(params=["prefork", "threads", "gevent"])
def worker(request, own_queue, worker_class, tmp_path):
    worker = worker_class(request.param, tmp_path / "log", "-c", "2", "-Q", own_queue, app="dead_letter_tasks")
    worker.wait_ready()
    yield worker
    worker.stop()


FAULTS = {
    # The append-only file is written each second.
    "restarted": "sleep 1.5; systemctl restart redis-server",
    "killed": "sleep 1.5; systemctl kill -s KILL redis-server; sleep 4; systemctl start redis-server",
    "connections": "ss -K state established '( sport = :6379 )' >/dev/null",
    "stopped": "sleep 1.5; systemctl stop redis-server; sleep 15; systemctl start redis-server",
}


class TestOnce:
    """A task that runs, one with an ETA, and one that waits behind them."""

    @pytest.mark.parametrize("fault", FAULTS)
    def test_through_a_fault(self, app, own_queue, worker, shell, tmp_path, fault):
        go = tmp_path / "go"
        running = app.tasks["letters.wait"].apply_async((str(tmp_path / "running"), str(go), 100), queue=own_queue)
        wait_until((tmp_path / "running").exists, 20)
        later = app.tasks["letters.work"].apply_async((str(tmp_path / "later"),), queue=own_queue, countdown=6)
        time.sleep(0.5)
        shell(FAULTS[fault])
        back = time.monotonic()
        next_one = app.tasks["letters.work"].apply_async((str(tmp_path / "next"),), queue=own_queue, retry=True)
        next_one.get(timeout=AGAIN + LOAD)
        took = time.monotonic() - back
        later.get(timeout=30)
        time.sleep(1)
        go.touch()
        running.get(timeout=30)
        assert worker.process.poll() is None, worker.log.read_text()
        assert (tmp_path / "running").read_text() == "ran\n"
        assert (tmp_path / "later").read_text() == "ran\n"
        assert (tmp_path / "next").read_text() == "ran\n"
        redis = app.connection_for_write().default_channel.client
        wait_until(lambda: redis.hlen("unacked") == 0 and redis.llen(own_queue) == 0, 10)
        assert took < AGAIN + LOAD
        print(f"{fault}: consumes again after {took:.1f} s")

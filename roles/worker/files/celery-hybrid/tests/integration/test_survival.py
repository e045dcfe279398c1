"""Redis is restarted, killed, cut off, while a task runs and others wait for their time: each runs once."""

from __future__ import annotations

import os
import time
import uuid

import pytest
import redis

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

#: A worker shall consume again within this time.
AGAIN = 30
LOAD = 15  # of a busy machine, on top


def needed(name):
    if name not in os.environ:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is not set")
    return os.environ[name]


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


POOLS = ("prefork", "threads", "gevent")


class Run:
    """A worker on a queue of its own, and its tasks: one that runs, and one whose time has not come."""

    def __init__(self, app, worker, queue, path):
        self.app, self.worker, self.queue, self.path = app, worker, queue, path
        path.mkdir()
        self.running = self.send("letters.wait", "running", str(path / "go"), 100)
        wait_until((path / "running").exists, 20)
        self.later = self.send("letters.work", "later", countdown=6)

    def send(self, task, name, *args, **options):
        return self.app.tasks[task].apply_async((str(self.path / name), *args), queue=self.queue, **options)

    def ran_once(self, *names):
        for name in names:
            assert (self.path / name).read_text() == "ran\n", self.worker.log.read_text()


@pytest.fixture
def runs(app, worker_class, tmp_path, monkeypatch):
    workers = {}
    for pool in POOLS:
        queue = f"survival-{pool}-{uuid.uuid4().hex[:8]}"
        monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", queue)
        log = tmp_path / f"{pool}.log"
        workers[queue] = worker_class(pool, log, "-c", "2", "-Q", queue, app="dead_letter_tasks")
    try:
        for worker in workers.values():
            worker.wait_ready()
        yield [Run(app, worker, queue, tmp_path / queue) for queue, worker in workers.items()]
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.stop()


def restart(shell, app):
    # The append-only file is written each second.
    shell("sleep 1.5; systemctl restart redis-server")


def kill(shell, app):
    shell("sleep 1.5; systemctl kill -s KILL redis-server; sleep 2; systemctl start redis-server")


def stop(shell, app):
    shell("sleep 1.5; systemctl stop redis-server; sleep 12; systemctl start redis-server")


def kill_connections(shell, app):
    with redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN")) as server:
        assert server.execute_command("CLIENT", "KILL", "USER", "celery") > 0


def freeze(shell, app):
    shell("systemctl kill -s STOP redis-server; sleep 12; systemctl kill -s CONT redis-server")


@pytest.mark.parametrize("fault", [restart, kill, kill_connections, freeze])
def test_each_task_runs_once(app, runs, shell, fault):
    time.sleep(0.5)
    fault(shell, app)
    back = time.monotonic()
    following = [run.send("letters.work", "next", retry=True) for run in runs]
    for result in following:
        result.get(timeout=AGAIN + LOAD)
    took = time.monotonic() - back
    for run in runs:
        run.later.get(timeout=30)
        (run.path / "go").touch()
    for run in runs:
        run.running.get(timeout=30)
        assert run.worker.process.poll() is None, run.worker.log.read_text()
        run.ran_once("running", "later", "next")
        # A server that only stops for a while may have answered the second question.
        assert fault is freeze or "Connected again: " in run.worker.log.read_text()
    server = app.connection_for_write().default_channel.client
    wait_until(lambda: not server.hlen("unacked") and not any(server.llen(run.queue) for run in runs), 10)
    print(f"{fault.__name__}: consume again after {took:.1f} s")

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
    from celery_hybrid.results.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


POOLS = ("prefork", "threads", "gevent")


class Run:
    """A worker on a queue of its own, and a task that runs all the time."""

    def __init__(self, app, worker, queue, path):
        self.app, self.worker, self.queue, self.path = app, worker, queue, path
        path.mkdir()
        self.running = self.send("letters.wait", "running", str(path / "go"), 100)
        wait_until((path / "running").exists, 20)

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


def test_each_task_runs_once(app, runs, shell):
    """Through one fault after the other; all together take longer than the visibility timeout."""
    begun = time.monotonic()
    for number, fault in enumerate((restart, kill, kill_connections, freeze)):
        later = [run.send("letters.work", f"later-{number}", countdown=5) for run in runs]
        # Received, and on the disk of Redis.
        time.sleep(1)
        fault(shell, app)
        back = time.monotonic()
        for result in [run.send("letters.work", f"next-{number}", retry=True) for run in runs]:
            result.get(timeout=AGAIN + LOAD)
        print(f"{fault.__name__}: they consume again after {time.monotonic() - back:.1f} s")
        for result in later:
            result.get(timeout=30)
        for run in runs:
            assert run.worker.process.poll() is None, run.worker.log.read_text()
            run.ran_once("running", f"later-{number}", f"next-{number}")
    for run in runs:
        # A server that only stops for a while may have answered the second question.
        assert run.worker.log.read_text().count("Connected again: ") >= 3
    wait_until(lambda: time.monotonic() - begun > 25, 30)
    for run in runs:
        (run.path / "go").touch()
    for run in runs:
        run.running.get(timeout=30)
        run.ran_once("running")
    server = app.connection_for_write().default_channel.client
    wait_until(lambda: not server.hlen("unacked") and not any(server.llen(run.queue) for run in runs), 10)

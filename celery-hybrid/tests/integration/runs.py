"""Workers that are put through faults: one task runs all the time, others come and go; each shall run once."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager

POOLS = ("prefork", "threads", "gevent")
#: A worker shall consume again within this time.
AGAIN = 30
LOAD = 15  # of a busy machine, on top


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


class Run:
    """A worker on a queue of its own, and a task that runs all the time."""

    def __init__(self, app, worker, queue, path):
        self.app, self.worker, self.queue, self.path = app, worker, queue, path
        self.names = []
        path.mkdir()
        self.running = self.send("letters.wait", "running", str(path / "go"), 100)
        wait_until((path / "running").exists, 20)

    def send(self, task, name, *args, **options):
        self.names.append(name)
        return self.app.send_task(task, (str(self.path / name), *args), queue=self.queue, **options)

    def each_ran_once(self):
        assert self.worker.process.poll() is None, self.worker.log.read_text()
        for name in self.names:
            assert (self.path / name).read_text() == "ran\n", self.worker.log.read_text()


def come_back(runs, number, fault):
    """See that each worker consumes again."""
    back = time.monotonic()
    for result in [run.send("letters.work", f"next-{number}", retry=True) for run in runs]:
        result.get(timeout=AGAIN + LOAD)
    print(f"{fault.__name__}: they consume again after {time.monotonic() - back:.1f} s")


@contextmanager
def each_pool(app, worker_class, tmp_path, monkeypatch):
    """Yield a run of each pool."""
    workers = {}
    for pool in POOLS:
        queue = f"survival-{pool}-{uuid.uuid4().hex[:8]}"
        monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", queue)
        workers[queue] = worker_class(pool, tmp_path / f"{pool}.log", "-c", "2", "-Q", queue, app="dead_letter_tasks")
    try:
        for worker in workers.values():
            worker.wait_ready()
        yield [Run(app, worker, queue, tmp_path / queue) for queue, worker in workers.items()]
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.stop()


def end(app, runs):
    """Let the tasks end that run all the time; then nothing is left."""
    for run in runs:
        (run.path / "go").touch()
    for run in runs:
        run.running.get(timeout=30)
        run.each_ran_once()
    server = app.connection_for_write().default_channel.client
    wait_until(lambda: not server.hlen("unacked") and not any(server.llen(run.queue) for run in runs), 10)

"""Settings and servers of the integration tests.

The environment says where they are:

CELERY_HYBRID_TEST_RESULTS     AMQP URL of a user with the rights of a client, in a vhost with the declared topology
CELERY_HYBRID_TEST_WORKER      the same for a user with the rights of a worker
CELERY_HYBRID_TEST_BROKER      Redis URL
CELERY_HYBRID_TEST_BROKER_ADMIN  the same for a user who may kill connections
CELERY_HYBRID_TEST_SHELL       runs one more argument, a script, as root on the RabbitMQ host: 'podman exec NAME sh -c'
CELERY_HYBRID_TEST_PARTITIONS  number of streams, 16 when unset

What is missing skips on a laptop, and fails where CI=true.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from environment import needed

TASKS = Path(__file__).parent / "integration"

# Read by hybrid_tasks in this process and in the workers.
os.environ.setdefault("CELERY_HYBRID_TEST_QUEUE", f"hybrid-tests-{uuid.uuid4().hex[:8]}")

# Outboxes of the workers of this run.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="celery-hybrid-tests-")


@pytest.fixture(scope="session")
def results_url():
    return needed("CELERY_HYBRID_TEST_RESULTS")


@pytest.fixture(scope="session")
def broker_url():
    return needed("CELERY_HYBRID_TEST_BROKER")


class Shell:
    """Runs commands on the RabbitMQ host."""

    def __init__(self, prefix, vhost):
        self.prefix = shlex.split(prefix)
        self.vhost = vhost

    def __call__(self, command):
        done = subprocess.run([*self.prefix, command], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ctl(self, command):
        return self(f"rabbitmqctl -q {command}")

    def reply_queues(self):
        rows = self.ctl(f"list_queues -p {self.vhost} --no-table-headers name").split()
        return {row for row in rows if row.startswith("celery.reply.")}

    def restart(self):
        self("systemctl restart rabbitmq-server")
        self.ctl("await_startup")


@pytest.fixture(scope="session")
def shell(results_url):
    return Shell(needed("CELERY_HYBRID_TEST_SHELL"), unquote(urlsplit(results_url).path[1:]))


@pytest.fixture
def make_app(results_url, broker_url):
    """Make applications; their connections end with the test."""
    from hybrid_tasks import make_app as make

    from celery_hybrid.results.store import _registry

    apps = []

    def made(**settings):
        app = make(**settings)
        apps.append(app)
        return app

    yield made
    for app in apps:
        for store in _registry.stores.pop(app, {}).values():
            store.close()


@pytest.fixture
def app(make_app):
    return make_app()


class Worker:
    """A worker in a process of its own."""

    alone = ("--without-mingle", "--without-gossip")

    def __init__(self, pool, log, *arguments, app="hybrid_tasks"):
        self.name = f"{pool}-{uuid.uuid4().hex[:6]}@test"
        self.log = log
        self.file = log.open("w")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool, "-n", self.name),
                *("-l", "INFO", *self.alone, *arguments),
            ],
            cwd=TASKS,
            env={**os.environ, "CELERY_HYBRID_TEST_RESULTS": needed("CELERY_HYBRID_TEST_WORKER")},
            stdout=self.file,
            stderr=subprocess.STDOUT,
        )

    def wait_ready(self, seconds=40):
        end = time.monotonic() + seconds
        while " ready." not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.file.close()


@pytest.fixture(scope="session")
def worker_class():
    return Worker


@pytest.fixture(scope="session")
def errback_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("errback") / "called"
    os.environ["CELERY_HYBRID_TEST_ERRBACK"] = str(path)
    return path


@pytest.fixture(scope="session")
def _workers(results_url, broker_url, errback_file, tmp_path_factory):
    workers = []

    def start():
        if not workers or workers[-1].process.poll() is not None:
            workers.append(Worker("prefork", tmp_path_factory.mktemp("worker") / "log", "-c", "2"))
            workers[-1].wait_ready()
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def worker(_workers):
    """A prefork worker, another one when Celery's own consumer has not survived what a test did to Redis."""
    return _workers()


@pytest.fixture
def other_worker(results_url, broker_url, errback_file, tmp_path, monkeypatch):
    """Start a worker of another pool, alone on a queue of its own."""
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", f"hybrid-tests-{uuid.uuid4().hex[:8]}")
    workers = []

    def start(pool, *arguments):
        worker = Worker(pool, tmp_path / f"{pool}-{len(workers)}.log", *arguments)
        workers.append(worker)
        worker.wait_ready()
        return worker

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def in_process(results_url, broker_url):
    """Run Python in a fresh process, which has ``app`` and sets ``answer``; return the answer."""

    def run(code, before="", timeout=60):
        script = f"{before}\nimport json\nfrom hybrid_tasks import app\n{code}\nprint('answer:' + json.dumps(answer))"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=TASKS, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("answer:")]
        return json.loads(lines[-1].removeprefix("answer:"))

    return run


@pytest.fixture
def task(app):
    """Return tasks by their short names."""
    return lambda name: app.tasks[f"hybrid.{name}"]

"""Workers and beat under something that listens as systemd does, and asks them to stop as systemd does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import redis
from celery.worker import state
from environment import needed
from runs import wait_until

pytestmark = pytest.mark.integration

TASKS = Path(__file__).parent


class Unit:
    """A process of Celery, and what it tells systemd."""

    def __init__(self, folder, *arguments):
        folder.mkdir()
        self.log = folder / "log"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.node = f"watched-{uuid.uuid4().hex[:6]}@test"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "watched_tasks", *arguments],
                cwd=TASKS,
                env={
                    **os.environ,
                    "CELERY_HYBRID_TEST_RESULTS": needed("CELERY_HYBRID_TEST_WORKER"),
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    "WATCHDOG_USEC": "2000000",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, *words, seconds=40):
        """Return the first message that has all the words."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.socket.settimeout(max(0.1, end - time.monotonic()))
            try:
                said = self.socket.recv(4096).decode()
            except TimeoutError:
                break
            if all(word in said for word in words):
                return said
        raise AssertionError(f"{words} was not said\n{self.log.read_text()}")

    def is_fed(self):
        """Return whether the watchdog hears from the process within the time that it has."""
        end = time.monotonic() + 2
        self.socket.setblocking(False)
        while True:  # what has been said before
            try:
                self.socket.recv(4096)
            except BlockingIOError:
                break
        while time.monotonic() < end:
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                if "WATCHDOG=1" in self.socket.recv(4096).decode():
                    return True
            except TimeoutError:
                break
        return False

    def children(self):
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def end(self):
        for pid in self.children():
            os.kill(pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.socket.close()


@pytest.fixture
def queue(monkeypatch):
    name = f"hybrid-tests-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", name)
    return name


@pytest.fixture
def unit(results_url, broker_url, queue, tmp_path):
    """Start a process; it is gone when the test ends."""
    units = []

    def start(*arguments):
        units.append(Unit(tmp_path / f"unit{len(units)}", *arguments))
        return units[-1]

    yield start
    for one in units:
        one.end()


@pytest.fixture
def worker(unit):
    def start(pool="prefork"):
        return unit("worker", "-P", pool, "-c", "2", "-l", "INFO", "--without-mingle", "--without-gossip", "-n", "w@%h")

    return start


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_is_ready_when_it_consumes_and_says_what_it_does(pool, worker, make_app, waiting, tmp_path):
    one = worker(pool)
    said = one.wait_for("READY=1")
    assert "STATUS=consuming; 0 tasks running" in said
    assert "Connected to redis" in one.log.read_text()
    app = make_app()
    sent = app.tasks["hybrid.wait_for_file"].delay(str(tmp_path / "go"))
    one.wait_for("WATCHDOG=1", "1 task running", "0 results in the outbox")
    # A task may take its time, whatever the pool.
    time.sleep(3)
    assert one.is_fed()
    (tmp_path / "go").touch()
    assert sent.get(timeout=20) == "found"
    one.wait_for("WATCHDOG=1", "0 tasks running")


def test_a_stopped_process_does_not_feed_the_watchdog(worker):
    one = worker()
    one.wait_for("READY=1")
    one.process.send_signal(signal.SIGSTOP)
    assert not one.is_fed()
    one.process.send_signal(signal.SIGCONT)
    one.wait_for("WATCHDOG=1")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_loop_that_hangs_is_stuck(pool, worker, make_app):
    one = worker(pool)
    one.wait_for("READY=1")
    # A broadcast is heard by workers that listen already, which is a moment after they are ready.
    one.wait_for("WATCHDOG=1")
    one.wait_for("WATCHDOG=1")
    make_app().control.broadcast("hang", arguments={"seconds": 8})
    one.wait_for("STATUS=stuck: the consumer has not made progress")
    assert not one.is_fed()
    assert "Stuck: the consumer" in one.log.read_text()
    one.wait_for("WATCHDOG=1", "consuming")


def test_a_pool_that_does_not_begin_is_stuck(worker, make_app):
    one = worker()
    one.wait_for("READY=1")
    children = one.children()
    assert len(children) == 2
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    sent = make_app().tasks["hybrid.add"].delay(1, 2)
    one.wait_for("STATUS=stuck: the pool has not started a task")
    assert not one.is_fed()
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    one.wait_for("WATCHDOG=1", "consuming")
    assert sent.get(timeout=20) == 3


def test_beat(unit, tmp_path):
    one = unit("beat", "--schedule", str(tmp_path / "schedule"), "--pidfile=")
    one.wait_for("READY=1")
    one.wait_for("WATCHDOG=1", "STATUS=1 periodic task")
    one.process.send_signal(signal.SIGSTOP)
    assert not one.is_fed()


@pytest.fixture
def waiting(broker_url, queue):
    """Return how many tasks wait in the queue."""
    return lambda: redis.Redis.from_url(broker_url).llen(queue)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_stopping_waits_only_for_what_runs(pool, worker, make_app, waiting, tmp_path):
    one = worker(pool)
    one.wait_for("READY=1")
    app = make_app()
    later = app.tasks["hybrid.add"].apply_async((1, 1), countdown=600)
    if hasattr(state, "scheduled_requests"):
        one.wait_for("1 scheduled")
    else:  # Celery before 5.7
        wait_until(lambda: f"{later.id}] received" in one.log.read_text(), 40)
    running = [app.tasks["hybrid.wait_for_file"].delay(str(tmp_path / "go")) for _ in range(2)]
    one.wait_for("2 tasks running")
    one.process.send_signal(signal.SIGTERM)
    one.wait_for("STOPPING=1")
    (tmp_path / "go").touch()
    assert one.process.wait(15) == 0
    assert [result.get(timeout=10) for result in running] == ["found", "found"]
    # What waited for its time waits in the queue again, and nothing that has run does.
    assert waiting() == 1
    assert later.state == "PENDING"


def test_stopping_puts_back_what_takes_too_long(worker, make_app, waiting, tmp_path):
    one = worker()
    one.wait_for("READY=1")
    app = make_app()
    running = [app.tasks["hybrid.wait_for_file"].delay(str(tmp_path / "go")) for _ in range(2)]
    one.wait_for("2 tasks running")
    begun = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    one.process.wait(30)
    assert time.monotonic() - begun >= 4
    assert waiting() == 2
    (tmp_path / "go").touch()
    other = worker()
    assert [result.get(timeout=40) for result in running] == ["found", "found"]
    other.wait_for("0 tasks running")
    assert waiting() == 0

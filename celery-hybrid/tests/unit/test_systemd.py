"""What systemd is told of a worker and of beat."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace

import pytest

from celery_hybrid.delivery.delivery import DEAD_LETTERS, RESULTS
from celery_hybrid.worker import systemd


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Request:
    def __init__(self, name, handed=True, limits=(None, None), task_limit=None):
        self.id = name
        self.time_limits = limits
        self.task = SimpleNamespace(time_limit=task_limit)
        self._apply_result = object() if handed else None


class Pool:
    num_processes = 2


class Consumer:
    """A consumer whose loop comes round when the test says so."""

    def __init__(self, pool=None):
        self.pool = pool or Pool()
        self.app = SimpleNamespace(conf=SimpleNamespace(task_time_limit=None))
        self.restart_count = 0
        self.broker_connection_retry_attempt = 0
        self.pending = []

    def call_soon(self, function):
        self.pending.append(function)

    def come_round(self):
        while self.pending:
            self.pending.pop()()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def requests(monkeypatch):
    held = SimpleNamespace(reserved=set(), active=set())
    monkeypatch.setattr(systemd.worker_state, "reserved_requests", held.reserved)
    monkeypatch.setattr(systemd.worker_state, "active_requests", held.active)
    monkeypatch.setattr(systemd, "stores_of", lambda app: [])
    return held


@pytest.fixture
def listener(tmp_path, monkeypatch):
    """What arrives at systemd's socket."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield lambda: server.recv(4096).decode()


def test_notify_without_systemd_does_nothing(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify(READY=1) is False


def test_notify(listener):
    assert systemd.notify(READY=1, STATUS="consuming") is True
    assert listener() == "READY=1\nSTATUS=consuming"


def test_notify_in_the_abstract_namespace(monkeypatch):
    name = f"celery-hybrid-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        systemd.notify(WATCHDOG=1)
        assert server.recv(100) == b"WATCHDOG=1"


def test_a_socket_that_is_gone_is_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert systemd.notify(READY=1) is True


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
    ],
)
def test_watchdog_seconds(environment, seconds, monkeypatch):
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_seconds() == seconds


def test_a_loop_that_comes_round_is_alive(clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    for _ in range(20):
        assert health.problem() == ""
        consumer.come_round()
        clock.now += 30


def test_a_loop_that_hangs_is_not(clock, requests):
    health = systemd.WorkerHealth(Consumer(), clock=clock)
    assert health.problem() == ""
    clock.now += 59
    assert health.problem() == ""
    clock.now += 2
    assert health.problem() == "the consumer has not made progress for 61 s"


def test_attempts_to_reach_the_broker_count_as_progress(clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    for attempt in range(10):
        consumer.broker_connection_retry_attempt = attempt
        assert health.problem() == ""
        assert not attempt or f"attempt {attempt}" in health.status()
        clock.now += 40


def test_the_solo_pool_is_alive_while_it_runs_a_task(clock, requests):
    pool = type("TaskPool", (), {"num_processes": 1, "__module__": "celery.concurrency.solo"})()
    health = systemd.WorkerHealth(Consumer(pool), clock=clock)
    health.problem()
    requests.active.add(Request("a"))
    clock.now += 500
    assert health.problem() == ""
    requests.active.clear()
    assert "not made progress" in health.problem()


def looked_at(health, consumer, clock, seconds):
    for _ in range(int(seconds)):
        problem = health.problem()
        consumer.come_round()
        clock.now += 1
    return problem


def test_a_pool_that_does_not_begin_is_stuck(clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    requests.reserved.add(Request("a"))
    assert looked_at(health, consumer, clock, 50) == ""
    assert "has not started a task" in looked_at(health, consumer, clock, 20)


@pytest.mark.parametrize("why", ["busy", "not handed"])
def test_a_task_may_wait(why, clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    if why == "busy":
        requests.active |= {Request("a"), Request("b")}
        requests.reserved |= requests.active | {Request("c")}
    else:
        requests.reserved.add(Request("c", handed=False))
    assert looked_at(health, consumer, clock, 300) == ""


@pytest.mark.parametrize("where", ["request", "task", "settings"])
def test_a_task_that_outlives_its_limit_means_a_stuck_pool(where, clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    limit = {name: 100 if name == where else None for name in ("request", "task", "settings")}
    request = Request("a", limits=(limit["request"], None), task_limit=limit["task"])
    consumer.app.conf.task_time_limit = limit["settings"]
    requests.active.add(request)
    requests.reserved.add(request)
    assert looked_at(health, consumer, clock, 155) == ""
    assert "the task a, whose time limit is 100 s" in looked_at(health, consumer, clock, 10)


def test_a_task_without_a_limit_may_run_indefinitely(clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    requests.active.add(Request("a"))
    requests.reserved |= requests.active
    assert looked_at(health, consumer, clock, 5000) == ""


def test_a_relay_that_hangs_is_a_problem(clock, requests, monkeypatch):
    relay = SimpleNamespace(steps=0)
    deliveries = [SimpleNamespace(what=RESULTS, relay=None), SimpleNamespace(what=DEAD_LETTERS, relay=relay)]
    monkeypatch.setattr(systemd, "stores_of", lambda app: [SimpleNamespace(deliveries=deliveries)])
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    assert looked_at(health, consumer, clock, 100) == ""  # not begun
    relay.steps = 1
    assert looked_at(health, consumer, clock, 50) == ""
    assert "relay of the outbox of dead letters" in looked_at(health, consumer, clock, 20)
    relay.steps = 2
    assert looked_at(health, consumer, clock, 2) == ""


class Scheduler:
    """Celery's, whose schedule is in a database."""

    max_interval = 300
    _heap = None

    @property
    def schedule(self):
        pytest.fail("the schedule was read, which is a query in other schedulers")

    def tick(self):
        self._heap = ["a"]
        return 5


def test_beat(clock):
    scheduler = Scheduler()
    health = systemd.BeatHealth(SimpleNamespace(scheduler=scheduler), clock=clock)
    assert scheduler.tick() == 5
    assert health.problem() == ""
    clock.now += 301
    assert health.problem() == ""
    assert scheduler.tick() == 5
    assert health.problem() == ""
    clock.now += 361
    assert "not checked its schedule for 361 s" in health.problem()
    assert health.status() == "1 periodic task"


def test_beat_that_waits_for_the_lock_of_another_is_not_stuck(clock):
    scheduler = Scheduler()
    health = systemd.BeatHealth(SimpleNamespace(scheduler=scheduler), clock=clock)
    clock.now += 3600
    assert health.problem() == ""
    assert health.status() == "waits for its turn"
    scheduler.tick()
    assert health.problem() == ""
    clock.now += 361
    assert "not checked its schedule for 361 s" in health.problem()


def test_beat_whose_scheduler_keeps_no_list_has_a_status(clock):
    scheduler = SimpleNamespace(tick=lambda: 5, max_interval=300)
    health = systemd.BeatHealth(SimpleNamespace(scheduler=scheduler), clock=clock)
    scheduler.tick()
    assert health.status() == "sends periodic tasks"


class Health:
    def __init__(self):
        self.answer = ""

    def problem(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def status(self):
        return "consuming"


def test_the_monitor_feeds_only_while_all_is_well(listener, caplog):
    health = Health()
    monitor = systemd.Monitor(health, watchdog=0.2)
    monitor.start()
    assert listener() == "READY=1\nSTATUS=consuming"
    assert listener() == "WATCHDOG=1\nSTATUS=consuming"
    health.answer = "the consumer hangs"
    while (said := listener()).startswith("WATCHDOG=1"):
        pass
    assert said == "STATUS=stuck: the consumer hangs"
    time.sleep(0.3)
    health.answer = ""
    # Nothing came meanwhile: neither food nor the same words again.
    assert listener() == "WATCHDOG=1\nSTATUS=consuming"
    health.answer = AttributeError("Celery has changed")
    while listener() != "WATCHDOG=1":
        pass
    monitor.stop()
    assert caplog.text.count("Stuck: the consumer hangs") == 1
    assert "Celery has changed" in caplog.text


@pytest.fixture
def stopped(monkeypatch):
    """Ask a worker to stop; return what happens, in its order."""
    events = []
    qos = SimpleNamespace(restore_unacked_once=lambda: events.append("put back"))
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=qos)))
    monkeypatch.setattr(systemd._Life, "consumer", consumer)
    monkeypatch.setattr(systemd._Life, "monitor", None)
    monkeypatch.setattr(systemd, "_POOL_SECONDS", 0.1)
    monkeypatch.setattr(systemd.os, "kill", lambda pid, number: events.append(f"signal {int(number)}"))
    monkeypatch.setattr(systemd.os, "_exit", lambda code: events.append(f"exit {code}"))

    def stop(drain_seconds):
        monkeypatch.setattr(systemd._Life, "drain_seconds", drain_seconds)
        systemd._worker_stops("Warm")
        deadline = time.monotonic() + 5
        while drain_seconds and "exit 1" not in events and time.monotonic() < deadline:
            time.sleep(0.01)
        return events

    return SimpleNamespace(stop=stop, qos=qos, events=events)


def test_a_pool_that_does_not_end_does_not_keep_its_tasks(stopped):
    assert stopped.stop(0.1) == ["signal 3", "put back", "exit 1"]


def test_a_worker_ends_also_when_nothing_can_be_put_back(stopped):
    stopped.qos.restore_unacked_once = lambda: 1 / 0
    assert stopped.stop(0.1) == ["signal 3", "exit 1"]


def test_without_a_limit_a_worker_drains_for_as_long_as_it_takes(stopped):
    stopped.stop(0)
    time.sleep(0.3)
    assert stopped.events == []


def test_age_of_a_loop_does_not_depend_on_how_soon_it_answers(clock, requests):
    consumer = Consumer()
    health = systemd.WorkerHealth(consumer, clock=clock)
    ages = []
    for at_once in (False, True, False, True, True, False):
        ask = consumer.call_soon
        if at_once:
            consumer.call_soon = lambda function: function()
        ages.append(health.loop_age())
        consumer.call_soon = ask
        consumer.come_round()
        clock.now += 15
    assert ages == [0] * 6


def test_age_of_a_loop_that_hangs_grows(clock, requests):
    health = systemd.WorkerHealth(Consumer(), clock=clock)
    ages = []
    for _ in range(3):
        ages.append(health.loop_age())
        clock.now += 15
    assert ages == [0, 15, 30]

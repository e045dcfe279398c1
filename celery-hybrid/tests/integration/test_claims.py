"""Workers that are paused, cut off or refused for longer than the visibility timeout, and nobody dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
import uuid
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from environment import needed
from runs import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

VISIBILITY = 4
# Seen overdue twice, a grace apart that is as long as so short a timeout; and each look is up to five seconds late.
TAKEOVER = 2 * VISIBILITY + 5


class Broker:
    """The keys of one test in Redis."""

    def __init__(self):
        self.queue = f"claims-{uuid.uuid4().hex[:8]}"
        self.unacked, self.index = f"unacked-{self.queue}", f"unacked_index-{self.queue}"
        self.redis = redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN"), decode_responses=True)

    def in_hand(self):
        return self.redis.hkeys(self.unacked)

    def is_empty(self):
        return not self.redis.exists(self.queue, self.unacked, self.index)

    def owners(self):
        return {name.rpartition(":")[2].split(".")[0] for name in self.in_hand()}


@pytest.fixture
def broker(results_url, broker_url, monkeypatch):
    if "CELERY_HYBRID_TEST_BROKER_ADMIN" not in os.environ:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("CELERY_HYBRID_TEST_BROKER_ADMIN is not set")
    broker = Broker()
    options = {"visibility_timeout": VISIBILITY, "unacked_key": broker.unacked, "unacked_index_key": broker.index}
    monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER_OPTIONS", json.dumps(options))
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", broker.queue)
    yield broker
    broker.redis.delete(broker.queue, broker.unacked, broker.index)
    broker.redis.close()


@pytest.fixture
def start(worker_class, broker, tmp_path):
    workers = []

    def started(count=2, pool="prefork"):
        log = tmp_path / f"worker-{len(workers)}.log"
        worker = worker_class(pool, log, "-c", str(count), "-Q", broker.queue, app="dead_letter_tasks")
        workers.append(worker)
        worker.wait_ready()
        return worker

    yield started
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGCONT)
        worker.stop()


@pytest.fixture
def send(broker, make_app, tmp_path):
    """Send a task that notes each time it begins, and does not end before ``go`` is there."""
    app = make_app()

    def sent(name, task="letters.wait", **options):
        args = (str(tmp_path / name), str(tmp_path / "go"), 100) if task == "letters.wait" else (str(tmp_path / name),)
        app.send_task(task, args, queue=broker.queue, **options)

    return sent


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def pause(worker, seconds):
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    worker.process.send_signal(signal.SIGCONT)


def test_tasks_of_a_worker_alone_run_once_when_it_was_paused(broker, start, send, tmp_path):
    worker = start()
    names = ["one", "two"]
    for name in names:
        send(name)
    wait_until(lambda: all((tmp_path / name).exists() for name in names), 30)
    for _ in range(3):
        pause(worker, 2 * VISIBILITY)
        time.sleep(1)
    # Long enough for it to take its own claims for those of a dead worker.
    time.sleep(TAKEOVER)
    (tmp_path / "go").touch()
    wait_until(broker.is_empty, 20)
    assert [lines(tmp_path / name) for name in names] == [["ran"], ["ran"]]


def test_paused_worker_touches_nothing_that_another_has_taken_over(broker, start, send, tmp_path):
    paused = start()
    waiting, running = ["eta-1", "eta-2", "eta-3"], ["run-1", "run-2"]
    for name in waiting:
        send(name, "letters.work", countdown=TAKEOVER)
    for name in running:
        send(name)
    wait_until(lambda: all((tmp_path / name).exists() for name in running), 30)
    wait_until(lambda: len(broker.in_hand()) == 5, 10)
    before = broker.owners()
    paused.process.send_signal(signal.SIGSTOP)
    other = start(6)
    wait_until(lambda: len(broker.in_hand()) == 5 and not broker.owners() & before, TAKEOVER + 20)
    wait_until(lambda: all(len(lines(tmp_path / name)) == 2 for name in running), 20)
    paused.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "5 claims are lost" in paused.log.read_text(), 20)
    assert "3 tasks that had not begun are left" in paused.log.read_text()
    # What had come while it waited would have been too much for it.
    paused.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    (tmp_path / "go").touch()
    assert paused.process.wait(30) == 0
    wait_until(broker.is_empty, 60)
    assert other.process.poll() is None
    assert [lines(tmp_path / name) for name in waiting] == [["ran"]] * 3
    # What ran on the paused worker goes on there. Nothing can stop that; there is no third time.
    assert [lines(tmp_path / name) for name in running] == [["ran"] * 2] * 2


def test_paused_worker_takes_no_more_than_before(broker, start, send, tmp_path):
    """Each task with an ETA makes room for another one, and leaves it when it is lost."""
    paused = start(1)
    for number in range(3):
        send(f"eta-{number}", "letters.work", countdown=300)
    wait_until(lambda: len(broker.in_hand()) == 3, 20)
    with contextlib.closing(_Thief(broker)) as thief:
        thief.take_over()
        wait_until(lambda: "3 tasks that had not begun are left" in paused.log.read_text(), 20)
        for number in range(4):
            send(f"run-{number}")
        wait_until((tmp_path / "run-0").exists, 20)
        time.sleep(2)
        assert broker.redis.llen(broker.queue) == 3
        (tmp_path / "go").touch()
        wait_until(lambda: not broker.redis.llen(broker.queue), 20)


class _Thief:
    """Has the messages of workers as stock kombu would: by its own clock, at once."""

    def __init__(self, broker):
        self.broker, self.entries = broker, {}

    def take_over(self):
        for name in self.broker.in_hand():
            entry = self.broker.redis.hget(self.broker.unacked, name)
            tag = json.loads(entry)[0]["properties"]["delivery_tag"]
            self.broker.redis.hdel(self.broker.unacked, name)
            self.broker.redis.zrem(self.broker.index, name)
            self.broker.redis.hset(self.broker.unacked, tag, entry)
            self.broker.redis.zadd(self.broker.index, {tag: time.time()})
            self.entries[tag] = entry

    def close(self):
        assert self.entries.keys() <= set(self.broker.in_hand()), "a worker has touched what is not its own"


class Proxy:
    """A way to Redis that can be cut."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.target = (parts.hostname, parts.port)
        self.server = socket.create_server(("127.0.0.1", 0))
        login = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self.server.getsockname()[1]}"))
        self.is_cut, self.pairs = False, []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                if self.is_cut:
                    client.close()
                    continue
                pair = (client, socket.create_connection(self.target))
                self.pairs.append(pair)
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, one, two):
        with contextlib.suppress(OSError, ValueError):
            while True:
                for ready in select.select([one, two], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (two if ready is one else one).sendall(data)

    def cut(self):
        self.is_cut = True
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        self.server.close()


def test_worker_that_was_cut_off_does_not_put_back_what_another_has(broker, start, send, tmp_path, monkeypatch):
    url = needed("CELERY_HYBRID_TEST_BROKER")
    with contextlib.closing(Proxy(url)) as proxy:
        monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER", proxy.url)
        lonely = start(1)
        monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER", url)
        names = ["eta-1", "eta-2", "eta-3"]
        for name in names:
            send(name, "letters.work", countdown=TAKEOVER + 15)
        wait_until(lambda: len(broker.in_hand()) == 3, 20)
        before = broker.owners()
        proxy.cut()
        start(3)
        wait_until(lambda: len(broker.in_hand()) == 3 and not broker.owners() & before, TAKEOVER + 20)
        mine = set(broker.in_hand())
        proxy.is_cut = False
        wait_until(lambda: "Connected again" in lonely.log.read_text(), 30)
        assert set(broker.in_hand()) == mine
        wait_until(broker.is_empty, 60)
        assert [lines(tmp_path / name) for name in names] == [["ran"]] * 3


def test_jump_of_the_clock_of_redis_restores_nothing(broker, start, send, tmp_path):
    start()
    start()
    names = [f"run-{number}" for number in range(4)]
    for name in names:
        send(name)
    wait_until(lambda: all((tmp_path / name).exists() for name in names), 30)
    for _ in range(5):
        for name in broker.in_hand():
            broker.redis.zincrby(broker.index, -900, name)
        time.sleep(1.5)
    (tmp_path / "go").touch()
    wait_until(broker.is_empty, 20)
    assert [lines(tmp_path / name) for name in names] == [["ran"]] * 4


def test_claims_are_renewed_while_redis_is_full(broker, start, send, tmp_path):
    start()
    start()
    send("one")
    wait_until((tmp_path / "one").exists, 30)
    broker.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            broker.redis.lpush(broker.queue, "x")
        time.sleep(TAKEOVER + VISIBILITY)
        (tmp_path / "go").touch()
        wait_until(broker.is_empty, 20)
    finally:
        broker.redis.config_set("maxmemory", 0)
    assert lines(tmp_path / "one") == ["ran"]


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_number_of_a_run_grows_and_is_not_inherited(broker, start, send, tmp_path, pool):
    start(pool=pool)
    for _ in range(2):
        send("runs", "letters.run")
        wait_until(
            lambda: len(lines(tmp_path / "runs")) % 2 == 0 and broker.is_empty() and lines(tmp_path / "runs"), 20
        )
    runs = [int(line) for line in lines(tmp_path / "runs")]
    assert len(runs) == 4
    assert runs == sorted(set(runs))
    assert abs(runs[0] / 1e6 - time.time()) < 3600

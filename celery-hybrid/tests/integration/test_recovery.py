"""Tasks in Redis are purged into a file, put back and recovered; killed at any step, nothing is lost or there twice."""

from __future__ import annotations

import base64
import fcntl
import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.recovery import tasks as recovery

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(120)]

HERE = Path(__file__).parent
# In a process of its own: three messages are a batch.
BEFORE = (
    "import os; from celery_hybrid.recovery import tasks as recovery; recovery._BATCH = 3; T = recovery.TaskRecovery\n"
    "die = lambda *_: os.kill(os.getpid(), 9)\n"
    "def after(name, calls):\n"
    "    real, left = getattr(T, name), [calls]\n"
    "    def call(*arguments):\n"
    "        real(*arguments)\n"
    "        left[0] -= 1\n"
    "        left[0] or die()\n"
    "    setattr(T, name, call)\n"
)


@pytest.fixture(scope="module")
def app(results_url, broker_url):
    from recovery_tasks import app

    yield app
    from celery_hybrid.results.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


class Broker:
    """The application's part of Redis."""

    def __init__(self, app):
        self.queue = app.conf.task_default_queue
        self.unacked = app.conf.broker_transport_options["unacked_key"]
        self.redis = redis.Redis.from_url(app.conf.broker_url)

    def lists(self, prefix=""):
        """What the lists of the queue hold, to the byte."""
        names = [self.queue, *(f"{self.queue}\x06\x16{step}" for step in (3, 6, 9))]
        return {name: self.redis.lrange(prefix + name, 0, -1) for name in names}

    def in_hand(self):
        return set(self.redis.zrange(f"{self.unacked}_index", 0, -1))

    def age(self, tag, seconds):
        now, _ = self.redis.time()
        self.redis.zadd(f"{self.unacked}_index", {tag: now - seconds})

    def clear(self):
        if keys := list(self.redis.scan_iter(f"*{self.queue}*")):
            self.redis.delete(*keys)


@pytest.fixture
def broker(app):
    broker = Broker(app)
    broker.clear()
    yield broker
    broker.clear()
    broker.redis.close()


@pytest.fixture
def tool(app):
    """Run ``celery tasks``: in this process, or in one of its own that something is done to before."""
    from celery.bin.celery import celery

    def run(*arguments, code=0, before=None):
        arguments = ["-A", "recovery_tasks", "tasks", *map(str, arguments)]
        if before is None:
            result = CliRunner().invoke(celery, arguments)
            assert result.exit_code == code, result.output
            return result.output
        start = f"{BEFORE}{before}\nimport sys\nfrom celery.bin.celery import main\nsys.argv[0] = 'celery'\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", start, *arguments], cwd=HERE, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def filled(app, broker):
    """A queue with eight messages of three priorities; one is sent twice, and one is none."""
    add = app.tasks["hybrid.add"]
    for number, priority in enumerate((0, 9, 0, 3, 0, 9)):
        add.apply_async((number, 1), priority=priority)
    broker.redis.lpush(broker.queue, broker.redis.lindex(broker.queue, 0), b"\xff\n garbage")
    return broker.lists()


def test_purge_and_put_back(broker, filled, tool, app, tmp_path):
    path = tmp_path / "tasks.jsonl"
    assert "would move 5 messages" in tool("purge", broker.queue, "--to", path)
    assert broker.lists() == filled
    assert not path.exists()
    assert "8 messages" in tool("purge", broker.queue, "--to", path, "--execute")
    assert not any(broker.lists().values())
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["hybrid.add"] * 4 + [None] + ["hybrid.add"] * 3
    assert base64.b64decode(lines[4]["element"]) == b"\xff\n garbage"
    # What has come meanwhile comes later.
    app.tasks["hybrid.add"].delay(7, 7)
    later = broker.lists()[broker.queue]
    assert "would put 8 messages back; 0 were" in tool("put-back", path)
    assert "8 messages put back, 0 were" in tool("put-back", path, "--execute")
    assert broker.lists() == {**filled, broker.queue: later + filled[broker.queue]}
    assert "would put 0 messages back; 8 were" in tool("put-back", path)
    assert "0 messages put back, 8 were" in tool("put-back", path, "--execute")
    assert "already exists" in tool("purge", broker.queue, "--to", path, "--execute", code=1)
    assert "8 messages put back" in tool("put-back", path, "--execute", "--again")
    assert broker.lists()[broker.queue] == later + filled[broker.queue] * 2


def test_with_a_global_prefix(broker, filled, tool, app, tmp_path, monkeypatch):
    path, prefix = tmp_path / "tasks.jsonl", "prefixed."
    for name, elements in filled.items():
        if elements:
            broker.redis.rpush(prefix + name, *elements)
    monkeypatch.setitem(app.conf.broker_transport_options, "global_keyprefix", prefix)
    assert "8 messages" in tool("purge", broker.queue, "--to", path, "--execute")
    assert not any(broker.lists(prefix).values())
    assert broker.lists() == filled
    tool("put-back", path, "--execute")
    assert broker.lists(prefix) == filled


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("after('_take_aside', 1)", id="one-list-is-aside"),
        pytest.param("T._remove = die", id="first-batch-is-on-disk"),
        pytest.param("after('_remove', 1)", id="first-batch-is-removed"),
        pytest.param("after('_remove', 3)", id="all-are-removed"),
    ],
)
def test_purge_is_killed(broker, filled, tool, tmp_path, monkeypatch, before):
    monkeypatch.setattr(recovery, "_BATCH", 3)
    path, other = tmp_path / "tasks.jsonl", tmp_path / "other"
    tool("purge", broker.queue, "--to", path, "--execute", before=before, code=-9)
    assert "was interrupted" in tool("list", "-t", "0.2")
    assert "Repeat that command" in tool("purge", broker.queue, "--to", other, "--execute", code=1)
    assert not other.exists()
    with path.open("a") as file:
        file.write('{"begun')
    assert "8 messages" in tool("purge", broker.queue, "--to", path, "--execute")
    assert len(path.read_text().splitlines()) == 8
    assert not any(broker.lists().values())
    assert "interrupted" not in tool("list", "-t", "0.2")
    tool("put-back", path, "--execute")
    assert broker.lists() == filled
    assert not broker.redis.exists(f"celery.purging.{broker.queue}")
    assert not broker.redis.hget("celery.purges", broker.queue)


def test_purge_whose_file_is_lost(broker, filled, tool, tmp_path):
    path, other = tmp_path / "tasks.jsonl", tmp_path / "other"
    tool("purge", broker.queue, "--to", path, "--execute", before="after('_remove', 1)", code=-9)
    path.unlink()
    assert "shorter" in tool("purge", broker.queue, "--to", path, "--execute", code=1)
    assert "5 messages" in tool("purge", broker.queue, "--to", other, "--execute", "--take-over")
    assert not any(broker.lists().values())


def test_put_back_is_killed(broker, filled, tool, tmp_path):
    path = tmp_path / "tasks.jsonl"
    tool("purge", broker.queue, "--to", path, "--execute")
    kill = (
        "real = T.__init__\n"
        "def init(self, connection):\n"
        "    real(self, connection)\n"
        "    script = self._return\n"
        "    self._return = lambda **keys: (script(**keys), die())\n"
        "T.__init__ = init"
    )
    tool("put-back", path, "--execute", before=kill, code=-9)
    assert sum(map(len, broker.lists().values())) == 3
    assert "5 messages put back, 3 were" in tool("put-back", path, "--execute")
    assert broker.lists() == filled


def test_a_file_that_is_none(tool, broker, tmp_path):
    path = tmp_path / "letters"
    path.write_text('{"id": 1}\n')
    assert "line 1, is not a message of a purge" in tool("put-back", path, code=1)


def take(app, count=1):
    """Take messages in a process that dies of it; return the ids of the tasks."""
    code = (
        "import os\nfrom recovery_tasks import app\nchannel = app.connection_for_write().default_channel\n"
        f"for _ in range({count}): print(channel.basic_get(app.conf.task_default_queue).headers['id'], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_what_dead_workers_had_is_recovered(broker, tool, app, worker_class, tmp_path):
    add = app.tasks["hybrid.add"]
    old, young, fresh = [add.delay(number, 1) for number in range(3)]
    assert take(app, 3) == [old.id, young.id, fresh.id]
    tags = {json.loads(broker.redis.hget(broker.unacked, tag))[0]["headers"]["id"]: tag for tag in broker.in_hand()}
    worker = worker_class("prefork", tmp_path / "log", "-c", "1", app="recovery_tasks")
    try:
        worker.wait_ready()
        go = tmp_path / "go"
        running = app.tasks["hybrid.wait_for_file"].delay(str(go))
        end = time.monotonic() + 20
        while len(broker.in_hand()) < 4 and time.monotonic() < end:
            time.sleep(0.1)
        (held,) = broker.in_hand() - set(tags.values())
        # Every worker looks for what is overdue as well, but does not move what it has seen once.
        for tag, age in ((tags[old.id], 3700), (tags[young.id], 100), (held, 3500)):
            broker.age(tag, age)
        text = tool("list")
        assert f"hybrid.add[{fresh.id}]  {broker.queue}" in text
        assert "on its way" in text
        assert "a worker has it" in text
        assert worker.name in text
        assert f"would put back hybrid.add[{young.id}]" in tool("recover", "--gone")
        assert "2 of 4 unacknowledged are back" in tool("recover", "--gone", "--execute").splitlines()[-1]
        assert held in broker.in_hand()
        go.touch()
        end = time.monotonic() + 20
        assert running.get(timeout=20) == "found"
        assert young.get(timeout=20) == 2
        assert old.get(timeout=20) == 1
        while len(broker.in_hand()) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert broker.in_hand() == {tags[fresh.id]}
    finally:
        worker.stop()


def test_overdue_that_no_worker_has(broker, tool, app):
    sent = app.tasks["hybrid.add"].delay(1, 1)
    before = broker.lists()
    take(app)
    (tag,) = broker.in_hand()
    broker.age(tag, 3500)
    assert "0 of 1 unacknowledged are stuck" in tool("recover", "-t", "0.2")
    broker.age(tag, 3700)
    text = tool("recover", "-t", "0.2")
    assert broker.in_hand() == {tag}
    assert "Workers that answer: " in text
    assert f"would put back hybrid.add[{sent.id}]" in text
    assert "overdue" in text
    tool("recover", "-t", "0.2", "--execute")
    assert not broker.in_hand()
    assert len(broker.lists()[broker.queue]) == len(before[broker.queue])


def test_results_that_wait_on_this_host(tool, broker, app):
    store = app.backend.store
    name = str(uuid.uuid4())
    assert "Nothing waits" in tool("deliver")
    meta = json.dumps({"task_id": name, "status": "SUCCESS", "result": 42}).encode()
    record = Record(
        name,
        RESULT,
        status="SUCCESS",
        body=meta,
        content_type="application/json",
        content_encoding="utf-8",
        timestamp=int(time.time()),
    )
    store.results_delivery.outbox.add(record, None)
    assert "1 result waiting, the oldest since" in tool("list", "-t", "0.2")
    assert "would deliver 1 result " in tool("deliver")
    with Path(f"{store.results_delivery.outbox.path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "A worker of this host is delivering them" in tool("deliver", "--execute")
    assert "1 result delivered" in tool("deliver", "--execute")
    assert not store.results_delivery.outbox.waiting()
    assert app.AsyncResult(name).get(timeout=20) == 42
    assert "Nothing waits" in tool("deliver")

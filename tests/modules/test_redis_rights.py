"""The rights of Celery's users: stock workers and applications run with them, and they are no more than that."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import CELERY_RIGHTS, celery_rules
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisError

from redis_servers import ADMIN, OFF, Server

DATABASE = 2
# As roles/redis/README.md gives them for the queues of the application.
KEYS = ["celery*", "slow*", "news*", "brief*", "_kombu.binding*", "unacked*", "*.celery.pidbox*", "celeryev.*"]
QUEUES = ["celery", "slow", "news"]
WORKER = {"name": "celery", "password": "of a worker"}
PRODUCER = {"name": "client", "password": "of a client"}
# What celery-hybrid and celery_verify need beyond Celery itself, and what redis-py sends after an error between WATCH
# and EXEC.
FIRST_OF_OURS = next(number for number, right in enumerate(CELERY_RIGHTS) if "celery-hybrid" in right.why)
OURS = {word for right in CELERY_RIGHTS[FIRST_OF_OURS:] for word in right.worker.split()}
NOT_ALWAYS = OURS | {"unwatch"}
# How an application begins a chord.
BEGIN = {"del", "hset", "expire"}


@pytest.fixture(scope="session")
def stock() -> Path:
    """The Python of a virtual environment with the Celery of the workers, and nothing of ours."""
    return Path(os.environ["MODULES_STOCK"]) / "bin" / "python"


class Application:
    """The stock application, as users of a server."""

    def __init__(self, python: Path, folder: Path, server: Server) -> None:
        self._python = python
        self._folder = folder
        self._server = server

    def _settings(self, user: dict[str, Any]) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "RIGHTS_DONE": str(self._folder / "done"),
            "RIGHTS_BROKER": f"redis://{user['name']}:{quote(user['password'])}@127.0.0.1:{self._server.port}/{DATABASE}",
        }

    def run(self, user: dict[str, Any], *arguments: str) -> None:
        done = subprocess.run(
            [self._python, *arguments],
            env=self._settings(user),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [
            self._python,
            "-m",
            "celery",
            "-A",
            "rights_app",
            "worker",
            "-c",
            "1",
            "-n",
            f"{name}@test",
            "-l",
            "INFO",
        ]
        with (self._folder / f"{name}.log").open("w") as log:
            # A group of its own: the children of a killed worker must not go on.
            process = subprocess.Popen(
                command, env=self._settings(WORKER), stdout=log, stderr=log, start_new_session=True
            )
            try:
                self.wait_for(lambda: f"{name}@test ready" in self.log(name))
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                process.wait(30)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def done(self) -> list[str]:
        file = self._folder / "done"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, condition: Any, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "\n".join(file.read_text()[-3000:] for file in self._folder.iterdir())
            time.sleep(0.1)


def used(server: Server) -> set[str]:
    return set(re.findall(r"(?m)^cmdstat_([^:]+):", server.call("INFO", "commandstats")))


def refused(server: Server) -> list[str]:
    """Return what the server has refused, as user and object."""
    entries = (dict(zip(entry[0::2], entry[1::2], strict=True)) for entry in server.call("ACL", "LOG"))
    return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in entries]


def users_of(server: Server) -> list[dict[str, Any]]:
    # As the role does: Redis 7.0 has no CLIENT SETINFO.
    more = [] if server.version == "7.0" else ["client|setinfo"]
    rules = {role: celery_rules(DATABASE, role, KEYS, more, QUEUES) for role in ("worker", "producer")}
    return [OFF, ADMIN, WORKER | {"rules": rules["worker"]}, PRODUCER | {"rules": rules["producer"]}]


def commands(user: dict[str, Any]) -> set[str]:
    return {word.strip("()+") for rule in user["rules"] for word in rule.split() if word.lstrip("(")[0] == "+"}


@pytest.fixture
def rights(server: Server) -> Server:
    server.run(users=users_of(server))
    server.call("ACL", "LOG", "RESET")
    server.call("CONFIG", "RESETSTAT")
    return server


def test_celery_has_the_rights_that_it_uses_and_no_others(rights: Server, stock: Path, tmp_path: Path) -> None:
    application = Application(stock, tmp_path, rights)
    application.run(PRODUCER, "-m", "rights_app", "produce")
    of_producers = used(rights)
    expected = {"priority 0", "priority 3", "priority 9", "slow", "later", "topic", "first", "second"}
    expected |= {"retried", "requeued"}
    with application.worker("one") as worker:
        application.wait_for(lambda: expected <= set(application.done()))
        application.run(WORKER, "-m", "rights_app", "administrate")
        application.run(WORKER, "-c", "import rights_app; rights_app.note.delay('killed', 2)")
        application.wait_for(lambda: "killed" in application.done())
        os.killpg(worker.pid, 9)
    with application.worker("two") as worker:
        application.wait_for(lambda: application.done().count("killed") == 2)
        worker.terminate()
        assert worker.wait(60) == 0
    assert refused(rights) == []
    *_, of_worker, of_producer = map(commands, users_of(rights))
    by_administrator = {"acl|list", "acl|log", "config|resetstat", "info", "auth", "hello"}
    assert of_producers - by_administrator == of_producer - BEGIN
    assert used(rights) - by_administrator == of_worker - NOT_ALWAYS


# Administration, other people's data, and what stops or fools everybody.
DANGEROUS = (
    "ACL LIST",
    "ACL WHOAMI",
    "BGREWRITEAOF",
    "BGSAVE",
    "CLIENT KILL ID 1",
    "CLIENT LIST",
    "CLIENT PAUSE 1",
    "CLUSTER INFO",
    "COMMAND COUNT",
    "CONFIG GET maxmemory",
    "CONFIG SET maxmemory 1",
    "COPY celery celery2",
    "DEBUG SLEEP 0",
    "DUMP celery",
    "FAILOVER ABORT",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION FLUSH",
    "INFO",
    "KEYS *",
    "LATENCY RESET",
    "MEMORY PURGE",
    "MIGRATE 127.0.0.1 1 celery 0 1",
    "MODULE LIST",
    "MONITOR",
    "MOVE celery 1",
    "RENAME celery celery2",
    "REPLICAOF NO ONE",
    "RESTORE celery 0 x",
    "SAVE",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "SHUTDOWN NOSAVE",
    "SLOWLOG GET",
    "SORT celery",
    "SUBSCRIBE /1.celeryev",
    "PSUBSCRIBE *",
    "PUBLISH /1.celery.pidbox x",
    "SWAPDB 0 1",
    "SYNC",
    "WAIT 0 1",
)
# What lies in queues, and the orders that workers obey.
OF_OTHERS = (
    "BLMOVE celery celery2 LEFT RIGHT 1",
    "BRPOP celery 1",
    "CLIENT TRACKING ON",
    "DEL celery",
    "EVAL return 0",
    "EXPIRE celery 1",
    "GETDEL celery",
    "HGETALL unacked",
    "LINDEX celery 0",
    "LPOP celery",
    "LRANGE celery 0 -1",
    "LREM celery 0 x",
    "LTRIM celery 1 0",
    "PSUBSCRIBE /2.celeryev/*",
    "PUBLISH /2.celery.pidbox x",
    "RPOP celery",
    "SADD celery x",
    "SCAN 0",
    "SMEMBERS unacked",
    "SUBSCRIBE /2.celery.pidbox",
    "UNLINK celery",
    "ZRANGE unacked_index 0 -1",
)
KEYS_OF_OTHERS = ("LPUSH other 1", "LLEN other")
# Keys of the transport: a list in the place of a hash or a set would stop every worker.
KEYS_OF_WORKERS = (
    "LPUSH unacked x",
    "LPUSH unacked_index x",
    "LPUSH unacked_mutex x",
    "LPUSH _kombu.binding.celery x",
    "LPUSH one@test.celery.pidbox x",
    "LPUSH celery.undeliverable x",
    "LPUSH celery:x x",
    "SADD _kombu.binding.celery.pidbox x",
    "SADD unacked x",
)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *((user["name"], command) for user in (WORKER, PRODUCER) for command in DANGEROUS + KEYS_OF_OTHERS),
        *(("client", command) for command in OF_OTHERS + KEYS_OF_WORKERS),
        ("celery", "GET other"),
    ],
)
def test_everything_else_is_refused(two_users: Server, user: str, command: str) -> None:
    password = {"celery": WORKER, "client": PRODUCER}[user]["password"]
    with (
        two_users.client(user, password) as client,
        pytest.raises(RedisError, match=r"NOPERM|DEBUG command not allowed"),
    ):
        client.call(*command.split())


def test_producer_begins_a_chord(two_users: Server) -> None:
    with two_users.client("client", PRODUCER["password"]) as client:
        client.call("SELECT", str(DATABASE))
        client.call("MULTI")
        client.call("DEL", "celery.chord.x")
        client.call("HSET", "celery.chord.x", "shape", "")
        client.call("EXPIRE", "celery.chord.x", "60")
        assert client.call("EXEC") == [0, 1, 1]


@pytest.mark.parametrize(
    "command",
    [
        "HGETALL celery.chord.x",
        "HGET celery.chord.x shape",
        "HSET celery.chords.ready a b",
        "ZADD celery.chords.ready 1 x",
        "EVAL return 0",
    ],
)
def test_producer_neither_reads_nor_counts_chords(two_users: Server, command: str) -> None:
    with two_users.client("client", PRODUCER["password"]) as client, pytest.raises(RedisError, match="NOPERM"):
        client.call(*command.split())


@pytest.fixture(scope="module")
def two_users(shared: Server) -> Iterator[Server]:
    """A server with both users; nothing of what a test does there works."""
    shared.run(users=users_of(shared))
    yield shared
    shared.call("ACL", "LOAD")


@pytest.mark.parametrize("key", ["celery", "celery:3", "celery:9", "celery\x06\x163", "slow\x06\x169"])
def test_producer_sends_in_every_priority_whatever_the_separator(two_users: Server, key: str) -> None:
    with two_users.client("client", PRODUCER["password"]) as client:
        assert client.call("LPUSH", key, "x") == 1
        assert client.call("LLEN", key) == 1
    two_users.call("DEL", key)


def test_a_stranger_is_refused(shared: Server) -> None:
    with pytest.raises(RedisError, match="WRONGPASS"):
        shared.client("default", "")

"""What is read on a worker host in an incident."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_hybrid.broker import unacknowledged
from celery_hybrid.diagnose import broker, sockets, workers
from celery_hybrid.worker import pools


def envelope(**properties: Any) -> bytes:
    """A message as kombu writes it into Redis."""
    message = {
        "body": "c2VjcmV0",
        "content-type": "application/json",
        "headers": {"id": "t1", "task": "app.add", "origin": "1@web", "argsrepr": "('secret',)"},
        "properties": {"delivery_info": {"exchange": "", "routing_key": "celery"}, **properties},
    }
    return json.dumps(message).encode()


class Redis:
    """The few answers that are needed."""

    def __init__(self, lists: dict[str, list[bytes]], now: int) -> None:
        self.lists, self.now = lists, now

    def time(self) -> tuple[int, int]:
        return self.now, 0

    def scan(self, cursor: int, count: int, _type: str) -> tuple[int, list[bytes]]:
        names = list(self.lists) if _type == "list" else ["celery-task-meta-1", "other"]
        return 0, [name.encode() for name in names]

    def llen(self, key: str) -> int:
        return len(self.lists.get(key, ()))

    def lrange(self, key: str, start: int, end: int) -> list[bytes]:
        return self.lists[key][start : end + 1 or None]

    def zrange(self, key: str, start: int, end: int, withscores: bool) -> list[tuple[bytes, float]]:
        return [(b"tag1", self.now - 60.0), (b"tag2", self.now - 50.0)]

    @contextlib.contextmanager
    def pipeline(self, transaction: bool) -> Iterator[Any]:
        bodies = [json.dumps([json.loads(envelope()), "", "slow"]).encode(), None]
        yield SimpleNamespace(hget=lambda key, tag: None, execute=lambda: bodies)

    def zcard(self, key: str) -> int:
        return 2

    def smembers(self, key: str) -> set[bytes]:
        return {b"celery||celery", b"celery::celery"}


def channel(lists: dict[str, list[bytes]], now: int) -> Any:
    """A channel of kombu's Redis transport."""
    client = Redis(lists, now)
    return SimpleNamespace(
        client=client,
        pool=client,
        visibility_timeout=3600,
        global_keyprefix="",
        priority_steps=[0, 3],
        sep="|",
        keyprefix_queue="_kombu.binding.%s",
        unacked_key="unacked",
        unacked_index_key="unacked_index",
        _q_for_pri=lambda queue, step: f"{queue}|{step}" if step else queue,
    )


@pytest.fixture(autouse=True)
def one_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client over the pool of a channel is the channel's own."""
    monkeypatch.setattr(unacknowledged.redis, "Redis", lambda connection_pool: connection_pool)


def test_queues_are_declared_ones_and_those_that_hold_messages() -> None:
    lists = {
        "celery": [envelope()] * 30,
        "celery|3": [b"no message"],
        "celery:9": [envelope()] * 4,
        "typo|3": [envelope()],
        "a list of the application": [b"1"],
        "x.reply.celery.pidbox": [envelope()],
    }
    found = broker.read(channel(lists, 1000), ["celery"])
    shape = [(q["queue"], q["priority"], q["length"], q["unreadable"]) for q in found["queues"]]
    assert shape == [("celery", 0, 30, 0), ("celery", 3, 1, 1), ("typo", 3, 1, 0)]
    # A sample of both ends.
    assert found["queues"][0]["content_types"] == {"application/json": 20}
    assert found["results_in_redis"] == 1
    assert "secret" not in str(found)


def test_lists_and_bindings_with_another_separator_are_named() -> None:
    found = broker.read(channel({"celery:9": [envelope()] * 4, "mail:3": [envelope()]}, 1000), ["celery"], ["celery"])
    assert found["foreign_lists"] == [{"list": "celery:9", "queue": "celery", "priority": 9, "length": 4}]
    assert found["foreign_bindings"] == [{"exchange": "celery", "binding": "celery::celery"}]


def test_unacknowledged_messages_have_an_age_and_a_task(monkeypatch: Any) -> None:
    monkeypatch.setattr(broker.time, "time", lambda: 1000.0)
    found = broker.unacked(channel({}, 1000))
    first, second = found["messages"]
    assert (first["age"], first["task"], first["id"], first["queue"]) == (60.0, "app.add", "t1", "slow")
    assert second == {"tag": "tag2", "age": 50.0, "body": "missing"}


def test_of_tasks_no_arguments_are_kept() -> None:
    info = {"id": "t1", "name": "app.add", "args": ["secret"], "delivery_info": {"routing_key": "celery"}}
    (kept,) = workers._kept("active", [info])
    assert (kept["id"], kept["name"], kept["queue"]) == ("t1", "app.add", "celery")
    assert "secret" not in str(workers._kept("scheduled", [{"eta": "then", "request": info}]))


def test_a_socket_is_found_with_the_process_that_holds_it() -> None:
    with socket.socket() as held:
        found = sockets.read()
        inode = str(os.fstat(held.fileno()).st_ino)
    assert found[inode]["pid"] == os.getpid()


def test_pools_tell_how_many_are_in_use() -> None:
    pool = SimpleNamespace(_dirty={1, 2}, limit=6)
    app = SimpleNamespace(pool=pool, producer_pool=pool)
    assert pools.pools(SimpleNamespace(app=app))["broker"] == {"used": 2, "limit": 6}

"""What the Redis exporter counts: all priority lists of a queue, and what workers have taken."""

from __future__ import annotations

import time
from pathlib import Path

import fakeredis
import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

TEMPLATE = Path(__file__).resolve().parents[4] / "roles/monitoring/templates/etc/prometheus/celeryops/queues.lua.j2"


@pytest.fixture
def script():
    variables = {
        "ansible_managed": "managed",
        "__monitoring_priority_steps": [0, 3, 6, 9],
        "monitoring_queues": ["celery", 'odd"name'],
    }
    return Templar(DataLoader(), variables=variables).template(trust_as_template(TEMPLATE.read_text()))


@pytest.fixture
def redis():
    return fakeredis.FakeRedis()


def numbers(redis, script):
    flat = [each.decode() for each in redis.eval(script, 0)]
    return dict(zip(flat[::2], map(float, flat[1::2]), strict=True))


def test_empty_broker_is_all_zeros(redis, script):
    found = numbers(redis, script)
    assert found == {"length:celery": 0, 'length:odd"name': 0, "unacked": 0, "unacked_oldest_seconds": 0}


def test_all_priorities_of_a_queue_count(redis, script):
    for key in ("celery", "celery\x06\x163", "celery\x06\x169", "celery:6", "celery\x06\x164", "celery2"):
        redis.lpush(key, "task")
    assert numbers(redis, script)["length:celery"] == 4


def test_oldest_unacknowledged_message_has_an_age(redis, script):
    now = time.time()
    redis.hset("unacked", mapping={"tag1": "message", "tag2": "message"})
    redis.zadd("unacked_index", {"tag1": now - 300, "tag2": now})
    found = numbers(redis, script)
    assert found["unacked"] == 2
    assert 298 < found["unacked_oldest_seconds"] < 305


def test_clock_that_was_set_back_gives_no_negative_age(redis, script):
    redis.zadd("unacked_index", {"tag": time.time() + 900})
    assert numbers(redis, script)["unacked_oldest_seconds"] == 0

"""What Redis counts of a chord, step by step."""

from __future__ import annotations

import uuid

import pytest
import redis
from environment import needed

from celery_hybrid.broker.chord_counter import (
    BODY,
    BY_ID,
    COMPLETE,
    COUNTED,
    DONE,
    GONE,
    LEASE,
    MORE,
    OPEN,
    UNCOUNTED,
    Part,
    RedisCounter,
)
from celery_hybrid.names import CHORD_PREFIX, CHORDS_OPEN, CHORDS_READY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

ORIGIN = {"id": "a", "root_id": "a"}


@pytest.fixture
def server(broker_url):
    with redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN"), decode_responses=True) as client:
        yield client


@pytest.fixture
def counter(app):
    return RedisCounter(app, 60)


@pytest.fixture
def group_id(counter, server):
    name = f"test-{uuid.uuid4()}"
    counter.begin(name, None)
    yield name
    server.delete(CHORD_PREFIX + name, f"{name}.queue")
    server.zrem(CHORDS_READY, name)
    server.zrem(CHORDS_OPEN, name)


def ended(counter, group_id, task_id, body=b"the body", **options):
    part = Part(task_id, 0, "SUCCESS", b"1", "application/json", "utf-8")
    return counter.count(group_id, part, ORIGIN, body, **options)


@pytest.mark.parametrize(
    ("size", "added", "tasks", "answers"),
    [
        (2, [], ["a"], [MORE]),
        (2, [], ["a", "b"], [MORE, COMPLETE]),
        (2, [], ["a", "a"], [MORE, MORE]),
        (2, ["c"], ["a", "b"], [MORE, MORE]),
        (2, ["c"], ["a", "b", "c"], [MORE, MORE, COMPLETE]),
        (2, ["c", "c"], ["a", "b", "c"], [MORE, MORE, COMPLETE]),
        (None, [], ["a", "b"], [MORE, MORE]),
        # Another one is finishing it.
        (1, [], ["a", "a"], [COMPLETE, MORE]),
    ],
)
def test_chord_is_complete_when_each_task_of_its_header_has_ended(counter, group_id, size, added, tasks, answers):
    if size is not None:
        counter.resize(group_id, size)
    for task_id in added:
        counter.grow(group_id, task_id)
    assert [ended(counter, group_id, task_id) for task_id in tasks] == answers


def test_body_is_asked_for_before_anything_is_counted(counter, group_id):
    counter.resize(group_id, 1)
    assert ended(counter, group_id, "a", b"") == BODY
    assert counter.state(group_id, "a") == (UNCOUNTED, None)
    assert ended(counter, group_id, "a") == COMPLETE
    assert counter.load(group_id).body == b"the body"


def test_first_end_of_a_task_counts(counter, group_id):
    counter.resize(group_id, 2)
    for status in ("SUCCESS", "FAILURE"):
        counter.count(group_id, Part("a", 0, status), ORIGIN, b"the body")
    assert counter.state(group_id, "a") == (COUNTED, "SUCCESS")


def test_parts_beyond_the_bound_are_asked_for_by_id(counter, group_id, monkeypatch):
    monkeypatch.setattr("celery_hybrid.broker.chord_counter.MOST_OF_CHORD", 1)
    assert ended(counter, group_id, "a", bounded=True) == BY_ID
    assert ended(counter, group_id, "a", bounded=False) == MORE


def test_finished_chord_is_remembered_as_done(counter, group_id, server):
    counter.resize(group_id, 1)
    ended(counter, group_id, "a")
    commands = [("LPUSH", f"{group_id}.queue", ["message"])]
    assert counter.finish(group_id, commands)
    assert not counter.finish(group_id, commands)
    assert server.lrange(f"{group_id}.queue", 0, -1) == ["message"]
    assert server.hgetall(CHORD_PREFIX + group_id) == {"done": "1"}
    assert ended(counter, group_id, "a") == counter.grow(group_id, "b") == counter.load(group_id).state == DONE
    assert counter.state(group_id, "a") == (DONE, None)


def test_body_for_a_queue_that_is_not_a_list_is_not_sent_and_the_chord_is_kept(counter, group_id, server):
    counter.resize(group_id, 1)
    ended(counter, group_id, "a")
    server.set(f"{group_id}.queue", "text")
    commands = [("HSET", CHORD_PREFIX + f"{group_id}", ["size", 9]), ("LPUSH", f"{group_id}.queue", ["message"])]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        counter.finish(group_id, commands)
    assert server.hget(CHORD_PREFIX + group_id, "size") == "1"
    assert server.zscore(CHORDS_READY, group_id) is not None


def test_chord_that_is_not_there_is_gone_and_not_begun(counter, server):
    name = f"test-{uuid.uuid4()}"
    assert ended(counter, name, "a") == counter.grow(name, "b") == counter.load(name).state == GONE
    assert counter.state(name, "a") == (GONE, None)
    assert not server.exists(CHORD_PREFIX + name)


def test_every_write_has_an_end(counter, group_id, server):
    key = CHORD_PREFIX + group_id
    for write in (
        lambda: counter.begin(group_id, None),
        lambda: counter.resize(group_id, 2),
        lambda: counter.grow(group_id, "b"),
        lambda: ended(counter, group_id, "a"),
        lambda: counter.finish(group_id, []),
    ):
        server.persist(key)
        write()
        assert 0 < server.ttl(key) <= 60 + 3600


def test_chord_that_is_not_complete_is_not_finished(counter, group_id):
    counter.resize(group_id, 2)
    ended(counter, group_id, "a")
    assert counter.load(group_id).state == OPEN


def test_abandoned_chord_is_given_to_one_sweeper(counter, group_id, server):
    counter.resize(group_id, 1)
    ended(counter, group_id, "a")
    seconds, _ = server.time()
    server.zadd(CHORDS_READY, {group_id: seconds - 31})
    assert (group_id, ORIGIN) in counter.abandoned()
    assert group_id not in dict(counter.abandoned())


def test_abandoned_chord_is_given_out_later_each_time_until_it_is_tried(counter, group_id, server):
    counter.resize(group_id, 1)
    ended(counter, group_id, "a")

    def pause():
        before = server.time()[0]
        server.zadd(CHORDS_READY, {group_id: before - LEASE - 1})
        assert group_id in dict(counter.abandoned())
        # Seconds until it is given out again, by the clock of Redis.
        return round((server.zscore(CHORDS_READY, group_id) + LEASE - before) / LEASE)

    assert [pause(), pause(), pause()] == [1, 2, 4]
    counter.load(group_id)
    assert pause() == 1
    assert server.ttl(CHORD_PREFIX + group_id) > 0


def test_sweep_makes_no_chord_of_one_that_has_expired(counter, group_id, server):
    server.delete(CHORD_PREFIX + group_id)
    server.zadd(CHORDS_READY, {group_id: 1})
    assert group_id in dict(counter.abandoned())
    assert not server.exists(CHORD_PREFIX + group_id)


def test_attempt_that_is_excused_does_not_count(counter, group_id, server):
    counter.resize(group_id, 1)
    assert ended(counter, group_id, "a") == COMPLETE
    assert [counter.load(group_id).tries for _ in range(2)] == [1, 2]
    counter.excuse(group_id)
    assert counter.load(group_id).tries == 2
    assert counter.finish(group_id, [])
    counter.excuse(group_id)
    assert server.hgetall(CHORD_PREFIX + group_id) == {"done": "1"}

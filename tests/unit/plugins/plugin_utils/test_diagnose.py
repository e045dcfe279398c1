"""What a diagnosis finds in what hosts said; each symptom is put into a healthy deployment."""

from __future__ import annotations

import copy
import inspect
import re

import pytest
from ansible_collections.celeryops.hybrid.plugins.filter.diagnosis import diagnosis
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _diagnose_symptoms
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose import Picture
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose_symptoms import findings

NODE = "default@worker1"
NOW = 1_000_000.0


def unit(name, **other):
    state = {
        "active": "active",
        "sub": "running",
        "restarts": 0,
        "pid": 10,
        "status": "",
        "seconds": 9000,
        "journal": [],
    }
    return {"name": name, **state, **other}


def answer(**other):
    return {
        "active": [],
        "reserved": [],
        "scheduled": [],
        "active_queues": ["celery"],
        "conf": {"task_serializer": "json", "accept_content": ["json"]},
        "pools": {"broker": {"used": 0, "limit": 6}},
        "stats": {"pool": {"max-concurrency": 1}, "broker": {"port": 6379}, "prefetch_count": 1, "uptime": 5},
        "result_store": {"circuit": "closed", "outbox": {"count": 0}, "failure": None},
        **other,
    }


def unfinished(**other):
    row = {"group": "g", "ended": 2, "size": 3, "seconds": 5, "complete_seconds": None, "tries": 0}
    return {"open": 1, "complete": 0, "oldest": [{**row, **other}]}


def healthy():
    client = {"id": "3", "addr": "10.0.0.3:4000", "age": "100", "idle": "60", "cmd": "brpop", "name": ""}
    return {
        "broker1": {
            "now": NOW,
            "errors": {},
            "units": [unit("redis-server.service")],
            "sockets": [],
            "addresses": ["10.0.0.1"],
            "redis": {
                "info": {"used_memory": "10", "connected_clients": "1", "aof_last_write_status": "ok"},
                "config": {"maxmemory": "100", "maxclients": "10", "maxmemory-policy": "noeviction"},
                "clients": [client],
                "slow_log": [],
            },
        },
        "results1": {
            "now": NOW,
            "errors": {},
            "units": [unit("rabbitmq-server.service")],
            "sockets": [],
            "addresses": ["10.0.0.2"],
            "rabbitmq": {
                "overview": {},
                "nodes": [{"mem_used": 1, "mem_limit": 9, "mem_alarm": False, "fd_used": 1, "fd_total": 10}],
                "connections": [],
                "channels": [],
                "queues": [
                    {"name": "celery.results.0", "type": "stream", "effective_policy_definition": {"max-age": "9s"}},
                    {"name": "celery.dead_letters", "type": "quorum", "messages": 0},
                    {"name": "celery.chords", "type": "classic", "messages": 0, "consumers": 0},
                    {"name": "celery.reply.web", "type": "classic", "messages_ready": 9},
                ],
            },
        },
        "worker1": {
            "now": NOW,
            "errors": {},
            "units": [unit("celery-worker@default.service")],
            "addresses": ["10.0.0.3"],
            "sockets": [
                {
                    "local": "10.0.0.3:4000",
                    "remote": "10.0.0.1:6379",
                    "pid": 10,
                    "unit": "celery-worker@default.service",
                },
                # Processes that belong to nobody known.
                {"local": "10.0.0.3:4001", "remote": "10.0.0.1:6379"},
            ],
            "worker": {
                "errors": {},
                "settings": {"config": {"broker_pool_limit": 3}, "broker": "redis://…"},
                "workers": {"heard": [NODE], "nodes": {NODE: answer()}, "refused": {}},
                "still_unacked": [],
                "redis": {
                    "clock_ahead": 0.1,
                    "visibility_timeout": 3600,
                    "results_in_redis": 0,
                    "all_keys_seen": True,
                    "unacked": {"count": 0, "messages": []},
                    "queues": [
                        {
                            "queue": "celery",
                            "priority": 0,
                            "length": 0,
                            "content_types": {},
                            "unreadable": 0,
                            "next": [],
                        }
                    ],
                },
            },
        },
    }


def put(said, path, value):
    """Set what stands at the end of a path; ``None`` in it is the only item of a list."""
    *way, last = path
    for step in way:
        said = said[0 if step is None else step]
    said[0 if last is None else last] = value


REDIS = ("broker1", "redis")
RABBIT = ("results1", "rabbitmq")
ANSWER = ("worker1", "worker", "workers", "nodes", NODE)
BROKER = ("worker1", "worker", "redis")
TASK = {"id": "t1", "name": "app.task", "time_start": NOW - 900, "queue": "celery"}
MESSAGE = {"tag": "tag1", "id": "t1", "task": "app.task", "age": 60.0, "queue": "celery"}
WAITING = {
    "queue": "celery",
    "priority": 0,
    "length": 7,
    "content_types": {"application/json": 7},
    "unreadable": 0,
    "next": [],
}
OTHER = (*ANSWER[:-1], "other@worker1")


@pytest.mark.parametrize(
    ("wrong", "expected", "words"),
    [
        ([(("worker1",), {"unreachable": True, "msg": "timed out"})], "host.unreachable", "worker1"),
        ([(("worker1",), {"failed": True, "msg": "timed out"})], "host.unread", "timed out"),
        ([(("worker1", "errors", "worker"), "no file")], "source.unread", "no file"),
        ([(("worker1", "worker", "errors", "settings"), "ImportError")], "source.unread", "celery settings"),
        ([(("worker1", "worker", "errors", "redis"), "refused")], "redis.unreachable", "refused"),
        ([((*REDIS[:1], "errors", "redis"), "refused"), (REDIS, None)], "redis.down", "redis-server.service is active"),
        ([((*RABBIT[:1], "errors", "rabbitmq"), "refused"), (RABBIT, None)], "rabbitmq.down", "results1"),
        ([((*REDIS, "info", "used_memory"), "90")], "redis.memory", "nearly full"),
        ([((*REDIS, "info", "used_memory"), "100")], "redis.memory", "is full"),
        ([((*REDIS, "config", "maxmemory-policy"), "allkeys-lru")], "redis.evicts", "allkeys-lru"),
        ([((*REDIS, "info", "connected_clients"), "9")], "redis.clients", "9 of 10"),
        ([((*REDIS, "info", "aof_last_write_status"), "err")], "redis.disk", "aof_last_write_status: err"),
        ([((*REDIS, "slow_log"), [{"at": NOW - 9, "milliseconds": 500, "command": "KEYS *"}])], "redis.slow", "KEYS *"),
        ([(("worker1", "sockets"), [])], "connections.stale", "id=3 of worker1"),
        ([((*RABBIT, "nodes", None, "mem_alarm"), True)], "rabbitmq.alarm", "memory"),
        (
            [((*RABBIT, "nodes", None), {"disk_free_alarm": True, "disk_free": 5, "disk_free_limit": 9})],
            "rabbitmq.alarm",
            "disk: 5 B free",
        ),
        ([((*RABBIT, "nodes", None, "fd_used"), 9)], "rabbitmq.descriptors", "9 of 10"),
        ([((*RABBIT, "queues", 2, "messages"), 4)], "chords.no_consumer", "4 parts"),
        ([((*BROKER, "clock_ahead"), -30.0)], "clock.skew", "30 s behind"),
        ([(("worker1", "units"), [])], "worker.down", "not known to systemd"),
        ([(("worker1", "units", None, "active"), "failed")], "worker.down", "is failed"),
        ([(("worker1", "worker", "workers"), {"heard": [], "nodes": {}})], "worker.hangs", "last used 60 s ago"),
        (
            [(("broker1", "units", None), unit("redis-server.service", restarts=2, seconds=5))],
            "unit.restarts",
            "2 times",
        ),
        ([((*ANSWER, "pools", "broker", "used"), 6)], "pool.exhausted", "broker: 6 of 6"),
        (
            [
                (
                    ("worker1", "sockets"),
                    [
                        {
                            "local": f"10.0.0.3:400{i}",
                            "remote": "b:6379",
                            "pid": 11,
                            "unit": "celery-worker@default.service",
                        }
                        for i in range(3)
                    ],
                )
            ],
            "pool.exhausted",
            "process 11: 3 connections",
        ),
        ([(OTHER, answer(conf={"task_serializer": "pickle"}))], "serializers.mixed", "other@worker1"),
        ([(("worker1", "worker", "workers", "refused"), {"odd@h": "pickle"})], "serializers.mixed", "odd@h"),
        (
            [
                ((*BROKER, "queues", None, "content_types"), {"application/x-python-serialize": 2}),
            ],
            "serializers.mixed",
            "2 of the sampled",
        ),
        (
            [((*ANSWER, "active"), [TASK]), ((*ANSWER, "reserved"), [TASK, TASK]), (OTHER, answer())],
            "prefetch.starvation",
            "idle: other@worker1",
        ),
        (
            [((*BROKER, "queues"), [WAITING]), ((*ANSWER, "active"), [TASK])],
            "workers.full",
            "app.task t1",
        ),
        (
            [((*BROKER, "unacked", "messages"), [MESSAGE]), (("worker1", "worker", "still_unacked"), ["tag1"])],
            "unacked.stuck",
            "app.task t1 of queue celery, for 60 s",
        ),
        (
            [
                ((*BROKER, "unacked", "messages"), [{**MESSAGE, "age": 4000.0}]),
                (("worker1", "worker", "still_unacked"), ["tag1"]),
                ((*ANSWER, "active"), [TASK]),
            ],
            "unacked.stuck",
            "puts overdue messages back",
        ),
        ([((*BROKER, "queues"), [{**WAITING, "queue": "typo"}])], "queue.no_consumer", "typo"),
        ([((*BROKER, "queues"), [{**WAITING, "queue": "celery.undeliverable"}])], "queue.undeliverable", "7"),
        ([((*BROKER, "queues", None, "unreadable"), 3)], "queue.poison", "3 of those"),
        (
            [((*BROKER, "foreign_lists"), [{"list": "celery:3", "queue": "celery", "priority": 3, "length": 4}])],
            "queue.foreign_name",
            "4 messages are in lists that no worker reads",
        ),
        (
            [((*BROKER, "foreign_bindings"), [{"exchange": "celery", "binding": "celery::celery"}])],
            "binding.foreign_name",
            "celery::celery",
        ),
        (
            [((*RABBIT, "queues", 0, "effective_policy_definition"), {})],
            "results.never_expire",
            "1 of 1 stream",
        ),
        ([((*RABBIT, "queues", 3, "messages_ready"), 20_000)], "results.unread", "celery.reply.web: 20000"),
        ([((*BROKER, "results_in_redis"), 5)], "results.in_redis", "5 keys"),
        ([((*ANSWER, "result_store", "outbox", "count"), 4)], "results.outbox", "4 results wait"),
        (
            [((*ANSWER, "result_store", "dead_letters"), {"count": 3, "failure": "storing a dead letter: no"})],
            "results.outbox",
            "'Dead letters of the workers on worker1 do not reach RabbitMQ', 'evidence': ['3 dead letters wait', "
            "'storing a dead letter: no']",
        ),
        ([((*ANSWER, "result_store", "circuit"), "open")], "results.outbox", "circuit to RabbitMQ is open"),
        (
            [((*ANSWER, "result_store", "chords"), unfinished(complete_seconds=300))],
            "chords.stuck",
            "complete for 300 s",
        ),
        ([((*ANSWER, "result_store", "chords"), unfinished(seconds=90_000))], "chords.open", "2 of 3 tasks ended"),
        ([((*RABBIT, "queues", 1, "messages"), 2)], "dead_letters.waiting", "2 dead letters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_symptom_is_recognised_and_nothing_else(wrong, expected, words):
    said = copy.deepcopy(healthy())
    for path, value in wrong:
        put(said, path, value)
    result = diagnosis(said, {"worker1": [NODE]}, ["broker1"], ["results1"])
    assert set(result["findings"]) == {expected}
    (finding, *_) = result["bundle"]["findings"]
    assert words in str(result["bundle"]["findings"])
    assert all(finding[part] for part in ("symptom", "evidence", "cause", "remedy"))
    assert f"1. {finding['symptom'][:60]}" in result["text"]


def test_a_healthy_deployment_has_no_findings_and_is_told_what_was_looked_at():
    result = diagnosis(healthy(), {"worker1": [NODE]}, ["broker1"], ["results1"])
    assert result["findings"] == []
    assert result["text"].startswith("No findings. Looked at 3 of 3 hosts, 1 of 1 worker, 1 queue with 0 messages")


@pytest.mark.parametrize(
    "path",
    [
        # Taken while hosts were being read.
        (("worker1", "worker", "still_unacked"), []),
        # Held by a worker.
        ((*ANSWER, "scheduled"), [{"id": "t1"}]),
        # Younger than the difference between two clocks may be.
        ((*BROKER, "unacked", "messages"), [{**MESSAGE, "age": 1.0}]),
        # Nobody could be asked.
        (("worker1", "worker", "still_unacked"), None),
        # A worker on a host that could not be read may have it.
        (("worker1", "worker", "workers", "heard"), [NODE, "far@worker2"]),
    ],
)
def test_a_message_that_may_be_in_a_workers_hand_is_not_stuck(path):
    said = healthy()
    put(said, (*BROKER, "unacked", "messages"), [MESSAGE])
    put(said, ("worker1", "worker", "still_unacked"), ["tag1"])
    put(said, *path)
    assert diagnosis(said, {"worker1": [NODE]}, ["broker1"], ["results1"])["findings"] == []


def test_a_queue_that_a_worker_on_an_unread_host_may_consume_has_a_consumer():
    said = healthy()
    put(said, (*BROKER, "queues"), [{**WAITING, "queue": "far"}])
    put(said, ("worker1", "worker", "workers", "heard"), [NODE, "far@worker2"])
    assert diagnosis(said, {"worker1": [NODE]}, ["broker1"], ["results1"])["findings"] == []


def test_a_connection_that_was_just_opened_is_not_stale_and_one_from_elsewhere_is_of_others():
    said = healthy()
    said["worker1"]["sockets"] = []
    said["broker1"]["redis"]["clients"][0]["idle"] = "2"
    said["broker1"]["redis"]["clients"].append(
        {"id": "9", "addr": "10.9.9.9:1", "age": "99", "idle": "99", "cmd": "get"}
    )
    picture = Picture(said, {"worker1": [NODE]}, ["broker1"], ["results1"])
    assert [client["kind"] for client in picture.clients] == ["ours", "others"]
    assert findings(picture) == []


@pytest.mark.parametrize("host", ["broker1", "results1", "worker1"])
@pytest.mark.parametrize("lost", ["everything", *sorted({*healthy()["worker1"], "redis", "rabbitmq"} - {"now"})])
def test_every_symptom_bears_that_sources_are_missing(host, lost):
    said = healthy()
    if lost == "everything":
        said[host] = {"unreachable": True}
    else:
        said[host].pop(lost, None)
    assert "Looked at" in diagnosis(said, {"worker1": [NODE]}, ["broker1"], ["results1"])["text"]


@pytest.mark.parametrize("part", [*healthy()["worker1"]["worker"], *answer()])
def test_every_symptom_bears_that_parts_of_a_workers_answer_are_missing(part):
    said = healthy()
    put(said, (*BROKER, "queues"), [WAITING])
    put(said, (*ANSWER, "active"), [TASK])
    put(said, (*ANSWER, "reserved"), [TASK])
    said["worker1"]["worker"].pop(part, None)
    said["worker1"]["worker"].get("workers", {}).get("nodes", {}).get(NODE, {}).pop(part, None)
    assert "Looked at" in diagnosis(said, {"worker1": [NODE]}, ["broker1"], ["results1"])["text"]


def test_all_symptoms_have_a_test():
    table = test_a_symptom_is_recognised_and_nothing_else.pytestmark[0].args[1]
    source = inspect.getsource(_diagnose_symptoms)
    assert {each[1] for each in table} == set(re.findall(r'Finding\(\s*"([a-z_.]+)"', source))

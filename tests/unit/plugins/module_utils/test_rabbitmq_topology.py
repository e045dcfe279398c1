"""Declared against actual topology, with an API that only remembers."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_topology as topology
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ApiError

STREAM = {"vhost": "celery", "name": "celery.results.0", "type": "stream", "arguments": {"x-max-age": "1D"}}
POLICY = {"vhost": "celery", "name": "p", "pattern": "^x", "definition": {"max-length": 5}}
BINDING = {
    "vhost": "celery",
    "source": "celery.results",
    "destination_type": "queue",
    "destination": "celery.results.0",
    "routing_key": "a b/c",
    "arguments": {"x": 1},
}


def stored(password: str, algorithm: str = "sha256") -> dict[str, Any]:
    salt = b"salt"
    digest = hashlib.new(algorithm, salt + password.encode()).digest()
    return {
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": f"rabbit_password_hashing_{algorithm}",
    }


DEFINITIONS: dict[str, Any] = {
    "vhosts": [{"name": "celery", "metadata": {}}],
    "users": [{"name": "worker", "tags": [], "limits": {"max-connections": 9}, **stored("right")}],
    "permissions": [{"vhost": "celery", "user": "worker", "configure": "", "write": ".*", "read": ".*"}],
    "topic_permissions": [],
    "parameters": [
        {"component": "vhost-limits", "vhost": "celery", "name": "limits", "value": {"max-queues": 7}},
        {
            "component": "operator_policy",
            "vhost": "celery",
            "name": "op",
            "value": {"pattern": "^x", "definition": {"max-length": 1}, "priority": 0, "apply-to": "all"},
        },
    ],
    "global_parameters": [],
    "policies": [{**POLICY, "apply-to": "all", "priority": 0}],
    "queues": [
        {
            "vhost": "celery",
            "name": "celery.results.0",
            "durable": True,
            "auto_delete": False,
            "arguments": {"x-queue-type": "stream", "x-max-age": "1D"},
        },
        {"vhost": "celery", "name": "celery.reply.x", "durable": True, "auto_delete": False, "arguments": {}},
        {"vhost": "other", "name": "theirs", "durable": True, "auto_delete": False, "arguments": {}},
    ],
    "exchanges": [],
    "bindings": [BINDING],
}


class Memory:
    """An API that remembers what was sent, and refuses what it is told to."""

    def __init__(self, refuse: str = "", answers: Any = None) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.refuse = refuse
        self.answers = answers

    def get(self, *path: str) -> Any:
        return self.answers

    def send(self, method: str, *path: str, body: Any = None, query: str = "") -> None:
        if self.refuse and self.refuse in path:
            raise ApiError("refused")
        self.sent.append((method, "/".join(path) + query, body))


def compare(declared: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    present, absent = topology.declared(declared)
    found = topology.differences(present, absent, topology.actual(DEFINITIONS), **options)
    return [(difference.action, difference.label) for difference in found]


def changes(declared: dict[str, Any], definitions: dict[str, Any] = DEFINITIONS) -> list[topology.Difference]:
    present, absent = topology.declared(declared)
    return topology.differences(present, absent, topology.actual(definitions))


@pytest.mark.parametrize(
    "declared",
    [
        {},
        {"vhosts": [{"name": "celery"}]},
        {"users": [{"name": "worker", "password": "right"}]},
        {"users": [{"name": "worker"}]},
        {"user_limits": [{"user": "worker", "name": "max-connections", "value": 9}]},
        {"vhost_limits": [{"vhost": "celery", "name": "max-queues", "value": 7}]},
        {"permissions": [{"vhost": "celery", "user": "worker", "configure": "", "write": ".*", "read": ".*"}]},
        {"policies": [POLICY]},
        {"operator_policies": [{"vhost": "celery", "name": "op", "pattern": "^x", "definition": {"max-length": 1}}]},
        {"queues": [STREAM]},
        {"bindings": [BINDING]},
        {"users": [{"name": "guest", "state": "absent"}]},
    ],
)
def test_what_is_as_declared_is_left_alone(declared: dict[str, Any]) -> None:
    assert compare(declared) == []


@pytest.mark.parametrize(
    ("declared", "action"),
    [
        ({"vhosts": [{"name": "new"}]}, "create"),
        ({"users": [{"name": "worker", "password": "rotated"}]}, "update"),
        ({"users": [{"name": "worker", "password": "right", "tags": ["monitoring"]}]}, "update"),
        ({"user_limits": [{"user": "worker", "name": "max-connections", "value": 10}]}, "update"),
        ({"vhost_limits": [{"vhost": "celery", "name": "max-queues", "value": 8}]}, "update"),
        ({"permissions": [{"vhost": "celery", "user": "worker", "write": "^x$"}]}, "update"),
        ({"policies": [{**POLICY, "definition": {"max-length": 5, "message-ttl": 1}}]}, "update"),
        ({"policies": [{**POLICY, "apply_to": "queues"}]}, "update"),
        ({"policies": [{**POLICY, "priority": 1}]}, "update"),
        ({"policies": [{**POLICY, "state": "absent"}]}, "delete"),
        ({"queues": [{**STREAM, "arguments": {}}]}, "conflict"),
        ({"queues": [{**STREAM, "type": "quorum"}]}, "conflict"),
        ({"queues": [{**STREAM, "durable": False}]}, "conflict"),
        ({"bindings": [{**BINDING, "arguments": {"x": 2}}]}, "create"),
        ({"bindings": [{**BINDING, "state": "absent"}]}, "delete"),
        ({"exchanges": [{"vhost": "celery", "name": "celery.results"}]}, "create"),
    ],
)
def test_every_field_is_compared(declared: dict[str, Any], action: str) -> None:
    assert [found for found, label in compare(declared)] == [action]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_password_is_compared_by_its_salted_hash(algorithm: str) -> None:
    kept = stored("right", algorithm)
    pair = (kept["password_hash"], kept["hashing_algorithm"])
    assert topology.password_matches("right", pair)
    assert not topology.password_matches("wrong", pair)


def test_a_sent_password_is_a_hash_that_matches() -> None:
    api = Memory()
    topology.apply(api, changes({"users": [{"name": "worker", "password": "rotated"}]}))
    ((method, path, body),) = api.sent
    assert (method, path) == ("PUT", "users/worker")
    assert "rotated" not in str(body)
    assert topology.password_matches("rotated", (body["password_hash"], "rabbit_password_hashing_sha256"))


def test_secrets_are_masked_in_the_diff() -> None:
    shown = str(topology.diff_of(changes({"users": [{"name": "worker", "password": "rotated"}]})))
    assert "rotated" not in shown
    assert DEFINITIONS["users"][0]["password_hash"] not in shown
    assert topology.MASK in shown


def test_deletions_come_first_and_backwards_creations_in_order() -> None:
    found = compare(
        {
            "bindings": [{**BINDING, "state": "absent"}, {**BINDING, "arguments": {}}],
            "policies": [{**POLICY, "state": "absent"}],
            "vhosts": [{"name": "new"}],
        }
    )
    assert [action for action, label in found] == ["delete", "delete", "create", "create"]
    assert [label.split()[0] for action, label in found] == ["bindings", "policies", "vhosts", "bindings"]


def test_prune_deletes_only_where_and_what_it_is_told() -> None:
    options = {"prune": ["queues"], "prune_vhosts": ["celery"], "protected": [r"celery\.reply\..*"]}
    assert compare({}, **options) == [("delete", "queues vhost 'celery', name 'celery.results.0'")]
    assert compare({"queues": [STREAM]}, **options) == []


def test_a_queue_is_deleted_only_when_it_is_empty() -> None:
    api = Memory()
    topology.apply(api, changes({"queues": [{**STREAM, "state": "absent"}]}))
    assert api.sent == [("DELETE", "queues/celery/celery.results.0?if-empty=true", None)]


def test_a_binding_is_deleted_by_the_key_that_the_server_gives_it() -> None:
    api = Memory(
        answers=[{**BINDING, "routing_key": "z", "properties_key": "z"}, {**BINDING, "properties_key": "a%20b~h"}]
    )
    topology.apply(api, changes({"bindings": [{**BINDING, "state": "absent"}]}))
    assert api.sent == [("DELETE", "bindings/celery/e/celery.results/q/celery.results.0/a%20b~h", None)]


def test_a_conflict_is_told_before_anything_is_written() -> None:
    api = Memory()
    found = changes({"vhosts": [{"name": "new"}], "queues": [{**STREAM, "type": "quorum"}]})
    with pytest.raises(
        topology.TopologyError, match=r"type is 'stream', declared is 'quorum'.*cannot change this in place"
    ):
        topology.apply(api, found)
    assert api.sent == []


def test_a_half_failed_run_says_what_was_done() -> None:
    api = Memory(refuse="policies")
    found = changes(
        {
            "vhosts": [{"name": "new"}],
            "policies": [{**POLICY, "priority": 3}],
            "exchanges": [{"vhost": "celery", "name": "e"}],
        }
    )
    with pytest.raises(topology.PartlyWrittenError, match="refused") as caught:
        topology.apply(api, found)
    assert [d.kind.name for d in caught.value.done] == ["vhosts"]
    assert [d.kind.name for d in caught.value.left] == ["policies", "exchanges"]


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"vhosts": [{"name": "a"}, {"name": "a"}]}, "declared twice"),
        ({"policies": [{"vhost": "celery", "name": "q"}]}, "needs 'pattern'"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict[str, Any], sentence: str) -> None:
    with pytest.raises(topology.TopologyError, match=sentence):
        topology.declared(declared)


def test_a_new_user_needs_a_password() -> None:
    with pytest.raises(topology.PartlyWrittenError, match="needs 'password'"):
        topology.apply(Memory(), changes({"users": [{"name": "new"}]}))


def test_a_queue_that_is_created_carries_its_type() -> None:
    api = Memory()
    topology.apply(api, changes({"queues": [{**STREAM, "name": "q"}]}))
    assert api.sent[0][2]["arguments"] == {"x-max-age": "1D", "x-queue-type": "stream"}

"""Declared against actual topology, with an API that only remembers."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_topology as topology
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_topology_rules as rules
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_topology_writing as writing
from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import MASK
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
    "rabbitmq_version": "4.0.5",
    "vhosts": [
        {
            "name": "celery",
            "metadata": {"description": "d", "tags": ["b", "a"], "default_queue_type": "quorum"},
        },
        {"name": "other", "metadata": {"description": "", "tags": []}},
    ],
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
    "global_parameters": [{"name": "internal_cluster_id", "value": "x"}, {"name": "ours", "value": 1}],
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

    def __init__(self, refuse: str = "", answers: dict[str, Any] | None = None) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.refuse = refuse
        self.answers = answers or {}

    def get(self, *path: str) -> Any:
        return self.answers.get("/".join(path), {})

    def send(self, method: str, *path: str, body: Any = None, query: str = "") -> Any:
        where = "/".join(path) + query
        if self.refuse and self.refuse in f"{method} {where}":
            raise ApiError("refused")
        self.sent.append((method, where, body))
        return self.answers.get(f"{method} {where}", {})


FOUND = topology.actual(DEFINITIONS)


def compare(declared: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    present, absent = topology.declared(declared)
    found = topology.differences(present, absent, FOUND, topology.Prune(**options))
    return [(difference.action, difference.label) for difference in found]


def changes(declared: dict[str, Any], definitions: dict[str, Any] = DEFINITIONS) -> list[topology.ObjectDifference]:
    present, absent = topology.declared(declared)
    return topology.differences(present, absent, topology.actual(definitions))


@pytest.mark.parametrize(
    "declared",
    [
        {},
        {"vhosts": [{"name": "celery"}]},
        {"vhosts": [{"name": "celery", "description": "d", "tags": ["a", "b"], "default_queue_type": "quorum"}]},
        {"vhosts": [{"name": "other", "description": "", "tags": [], "default_queue_type": "classic"}]},
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
        ({"vhosts": [{"name": "celery", "description": "e"}]}, "update"),
        ({"vhosts": [{"name": "celery", "tags": ["a"]}]}, "update"),
        ({"vhosts": [{"name": "celery", "default_queue_type": "classic"}]}, "update"),
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
    writing.apply(api, changes({"users": [{"name": "worker", "password": "rotated"}]}), FOUND)
    ((method, path, body),) = api.sent
    assert (method, path) == ("PUT", "users/worker")
    assert "rotated" not in str(body)
    assert topology.password_matches("rotated", (body["password_hash"], "rabbit_password_hashing_sha256"))


def test_secrets_are_masked_in_the_diff() -> None:
    shown = str(writing.diff_of(changes({"users": [{"name": "worker", "password": "rotated"}]})))
    assert "rotated" not in shown
    assert DEFINITIONS["users"][0]["password_hash"] not in shown
    assert MASK in shown


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


@pytest.mark.parametrize(
    ("declared", "kinds", "options", "deleted"),
    [
        ({}, [], {}, []),
        ({}, ["queues"], {}, ["queues celery/celery.results.0"]),
        ({"queues": [STREAM]}, ["queues"], {}, []),
        ({}, ["queues"], {"vhosts": ["other"]}, ["queues other/theirs"]),
        ({}, ["queues"], {"protected": [".*"]}, []),
        (
            {},
            ["queues"],
            {"protected": ["results"]},
            ["queues celery/celery.reply.x", "queues celery/celery.results.0"],
        ),
        ({}, ["users"], {}, ["users worker"]),
        ({}, ["users", "permissions"], {"username": "worker"}, []),
        ({}, ["users"], {"protected": ["w.*"]}, []),
        ({"users": [{"name": "worker"}]}, ["users"], {}, []),
        ({}, ["vhosts"], {}, ["vhosts celery", "vhosts other"]),
        ({}, ["vhosts"], {"protected": ["other"]}, ["vhosts celery"]),
        ({}, ["user_limits"], {}, ["user_limits worker/max-connections"]),
        ({}, ["global_parameters"], {}, ["global_parameters ours"]),
        ({}, ["vhost_limits", "bindings"], {}, ["bindings celery/celery.results", "vhost_limits celery/max-queues"]),
    ],
)
def test_prune_deletes_only_where_and_what_it_is_told(
    declared: dict[str, Any], kinds: list[str], options: dict[str, Any], deleted: list[str]
) -> None:
    options = {"vhosts": ["celery"], "protected": [r"celery\.reply\..*"], **options}
    found = compare(declared, kinds=kinds, **options)
    assert [action for action, _ in found] == ["delete"] * len(deleted)
    assert sorted(label.partition(" ->")[0] for _, label in found) == deleted


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kinds": ["queues"]}, "'prune_vhosts' is empty, so queues"),
        ({"protected": ["("]}, "is not a regular expression"),
    ],
)
def test_prune_that_cannot_be_meant_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(topology.DeclarationError, match=sentence):
        topology.Prune(**options)


def test_a_queue_is_deleted_only_when_it_is_empty() -> None:
    api = Memory()
    writing.apply(api, changes({"queues": [{"vhost": "other", "name": "theirs", "state": "absent"}]}), FOUND)
    assert api.sent == [("DELETE", "queues/other/theirs?if-empty=true", None)]


# RabbitMQ refuses the question for quorum queues, and ignores it for streams.
@pytest.mark.parametrize(
    "answers",
    [
        {"queues/celery/quorum": {"messages": 1}},
        {"queues/celery/quorum": {"messages": 0}, "POST queues/celery/quorum/get": [{"payload": "eA=="}]},
    ],
)
def test_a_quorum_queue_with_a_message_is_not_deleted(answers: dict[str, Any]) -> None:
    gone = topology.ObjectDifference(topology.KIND["queues"], ("celery", "quorum"), {"type": "quorum"}, None)
    api = Memory(answers=answers)
    with pytest.raises(writing.PartlyWrittenError, match="holds 1 message "):
        writing.apply(api, [gone], FOUND)
    assert "DELETE" not in {method for method, *_ in api.sent}


def test_a_stream_with_messages_is_not_deleted_and_the_vhost_is_open_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.time, "sleep", lambda seconds: None)
    api = Memory(answers={"queues/celery/celery.results.0": {"messages": 3}})
    with pytest.raises(writing.PartlyWrittenError, match="holds 3 messages"):
        writing.apply(api, changes({"queues": [{**STREAM, "state": "absent"}]}), FOUND)
    assert [(method, path) for method, path, _ in api.sent] == [
        ("PUT", "vhost-limits/celery/max-connections"),
        ("DELETE", "vhost-limits/celery/max-connections"),
    ]


def test_nothing_is_recreated_while_a_client_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.time, "sleep", lambda seconds: None)
    answers = {
        "users": [{"name": "worker"}],
        "connections/username/worker": [{"vhost": "celery", "user": "worker"}, {"vhost": "other", "user": "x"}],
    }
    found = changes({"queues": [{**STREAM, "type": "quorum"}]})
    writing.inspect(Memory(answers=answers), found, "empty")
    assert found[0].action == "conflict"
    assert "Clients are connected to vhost celery (of worker)" in found[0].sentence()
    found[0].obstacle, found[0].recreate = "", True
    api = Memory(answers=answers)
    with pytest.raises(writing.PartlyWrittenError, match="Clients are connected"):
        writing.apply(api, found, FOUND)
    assert {path for _, path, _ in api.sent} == {"vhost-limits/celery/max-connections"}


def test_recreated_queue_is_bound_as_before_and_restored_when_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.time, "sleep", lambda seconds: None)
    found = changes({"queues": [{**STREAM, "type": "quorum", "arguments": {}}]})
    writing.inspect(Memory(), found, "empty")
    assert found[0].action == "update"
    queue, binding = "queues/celery/celery.results.0", "bindings/celery/e/celery.results/q/celery.results.0"
    api = Memory()
    writing.apply(api, found, FOUND)
    assert [(method, path) for method, path, _ in api.sent[1:-1]] == [
        ("DELETE", queue),
        ("PUT", queue),
        ("POST", binding),
    ]

    class Refusing(Memory):
        def send(self, method: str, *path: str, body: Any = None, query: str = "") -> Any:
            if body and body.get("arguments", {}).get("x-queue-type") == "quorum":
                raise ApiError("refused")
            return super().send(method, *path, body=body, query=query)

    api = Refusing()
    with pytest.raises(writing.PartlyWrittenError, match="refused It is there again, as it was"):
        writing.apply(api, found, FOUND)
    assert [path for _, path, _ in api.sent[-3:-1]] == [queue, binding]
    assert api.sent[-3][2]["arguments"] == {"x-max-age": "1D", "x-queue-type": "stream"}


@pytest.mark.parametrize(
    ("declared", "recreate", "answers", "sentence"),
    [
        ({"type": "quorum"}, "none", {}, "set 'recreate'"),
        ({"type": "quorum"}, "empty", {}, "set 'recreate' to messages-kept"),
        ({"type": "quorum"}, "messages-kept", {}, "rabbitmq_shovel"),
        ({"type": "stream"}, "messages-kept", {}, "from or into a stream"),
        ({"arguments": {"x-max-length": 2}}, "messages-kept", {}, "its declared length would drop"),
    ],
)
def test_queue_with_messages_is_recreated_only_without_loss(
    declared: dict[str, Any], recreate: str, answers: dict[str, Any], sentence: str
) -> None:
    found = changes({"queues": [{"vhost": "other", "name": "theirs", **declared}]})
    answers = {"queues/other/theirs": {"messages": 3}, "nodes": [{"enabled_plugins": []}], **answers}
    writing.inspect(Memory(answers=answers), found, recreate)
    assert sentence in found[0].sentence()
    assert not found[0].recreate


def test_a_vhost_with_messages_is_not_deleted() -> None:
    found = changes({"vhosts": [{"name": "other", "state": "absent"}]})
    writing.inspect(Memory(answers={"queues/other": [{"messages": 2}, {}]}), found, "none")
    assert found[0].action == "conflict"


def test_a_binding_is_deleted_by_the_key_that_the_server_gives_it() -> None:
    path = "bindings/celery/e/celery.results/q/celery.results.0"
    api = Memory(
        answers={
            path: [{**BINDING, "routing_key": "z", "properties_key": "z"}, {**BINDING, "properties_key": "a%20b~h"}]
        }
    )
    writing.apply(api, changes({"bindings": [{**BINDING, "state": "absent"}]}), FOUND)
    assert api.sent == [("DELETE", f"{path}/a%20b~h", None)]


def test_deleting_one_topic_permission_leaves_the_others() -> None:
    gone = topology.ObjectDifference(topology.KIND["topic_permissions"], ("celery", "worker", "x/y"), {}, None)
    api = Memory()
    writing.apply(api, [gone], FOUND)
    assert api.sent == [("DELETE", "topic-permissions/celery/worker/x/y", None)]


def test_a_conflict_says_what_differs_and_what_to_do() -> None:
    (conflict,) = changes({"queues": [{**STREAM, "type": "quorum"}]})
    assert conflict.result() == {
        "layer": "object",
        "kind": "queues",
        "name": "celery/celery.results.0",
        "action": "conflict",
        "actual": {"type": "stream", "durable": True, "auto_delete": False, "arguments": {"x-max-age": "1D"}},
        "declared": {"type": "quorum", "durable": True, "auto_delete": False, "arguments": {"x-max-age": "1D"}},
        "sentence": "queues celery/celery.results.0: type is 'stream', declared is 'quorum'. " + topology.CANNOT_CHANGE,
    }


def test_half_failed_run_reports_what_was_done() -> None:
    api = Memory(refuse="policies/")
    found = changes(
        {
            "vhosts": [{"name": "new"}],
            "policies": [{**POLICY, "priority": 3}],
            "exchanges": [{"vhost": "celery", "name": "e"}],
        }
    )
    with pytest.raises(writing.PartlyWrittenError, match="refused") as caught:
        writing.apply(api, found, FOUND)
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
    with pytest.raises(topology.DeclarationError, match=sentence):
        topology.declared(declared)


def plan_of(declared: dict[str, Any], examples: list[str] | None = None, **prune: Any) -> rules.Plan:
    present, absent = topology.declared(declared)
    found = topology.differences(present, absent, FOUND, topology.Prune(**prune))
    named = {("policies", ("celery", "new")): examples or []}
    return rules.Plan(present, topology.after_writing(FOUND, found), found, named)


def judged(declared: dict[str, Any], examples: list[str] | None = None, **prune: Any) -> list[str]:
    return rules.problems(plan_of(declared, examples, **prune))


ADMITTED = {"permissions": [{"vhost": "celery", "user": "new"}]}
NEW = {"vhost": "celery", "name": "new"}
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "name of RabbitMQ's": ({"queues": [{**NEW, "name": "amq.q"}]}, "'amq.q' is a name of RabbitMQ's own"),
    "default exchange": ({"exchanges": [{**NEW, "name": ""}]}, "name of RabbitMQ's own"),
    "dots": ({"queues": [{**NEW, "name": ".."}]}, "cannot name"),
    "mask": ({"global_parameters": [{"name": "p", "value": {"uri": MASK}}]}, "where a secret belongs"),
    "permission": (
        {"permissions": [{"vhost": "celery", "user": "worker", "read": "("}]},
        "'read' of celery/worker is not a regular expression",
    ),
    "pattern": ({"policies": [{**NEW, "pattern": "*", "definition": {"expires": 1}}]}, "'pattern' of celery/new is no"),
    "vhost": ({"queues": [{"vhost": "gone", "name": "q"}]}, "needs the vhost 'gone'"),
    "user": ({"permissions": [{"vhost": "celery", "user": "gone"}]}, "needs the user 'gone'"),
    "user that goes": (
        {
            "users": [{"name": "worker", "state": "absent"}],
            "user_limits": [{"user": "worker", "name": "max-channels", "value": 99}],
        },
        "needs the user 'worker'",
    ),
    "password": ({"users": [{"name": "new"}], **ADMITTED}, "needs 'password'"),
    "source": ({"bindings": [{**BINDING, "source": "gone"}]}, "needs the exchange 'gone'"),
    "destination": ({"bindings": [{**BINDING, "destination": "gone"}]}, "needs the queue 'gone'"),
    "default source": ({"bindings": [{**BINDING, "source": ""}]}, "cannot be bound to the default exchange"),
    "policy without definition": ({"policies": [{**NEW, "pattern": "results"}]}, "needs 'definition'"),
    "mistyped policy": (
        {"policies": [{**NEW, "pattern": "results", "definition": {"max-lenght": 1}}]},
        "'max-length' is meant",
    ),
    "mistyped argument": ({"queues": [{**NEW, "arguments": {"max-length": 1}}]}, "'x-max-length' is meant"),
    "user without rights": ({"users": [{"name": "new", "password": "p"}]}, "new would have no rights on any vhost"),
    "unknown limit": (
        {"vhost_limits": [{**NEW, "name": "max-users", "value": 1}]},
        "'max-users' of celery is not a limit",
    ),
    "limit without value": ({"vhost_limits": [{**NEW, "name": "max-queues"}]}, "needs 'value'"),
    "fewer queues than exist": (
        {"vhost_limits": [{**NEW, "name": "max-queues", "value": 1}]},
        "2 exist or are declared",
    ),
    "fewer channels than connections": (
        {"user_limits": [{"user": "worker", "name": "max-channels", "value": 1}]},
        "9 connections and 1 channels",
    ),
    "quorum that deletes itself": ({"queues": [{**NEW, "type": "quorum", "auto_delete": True}]}, "'auto_delete' false"),
    "stream that is not durable": ({"queues": [{**NEW, "type": "stream", "durable": False}]}, "'durable' must be true"),
    "two types": ({"queues": [{**NEW, "arguments": {"x-queue-type": "quorum"}}]}, "has two types"),
}


@pytest.mark.parametrize("name", RULES)
def test_what_cannot_work_gives_a_reason(name: str) -> None:
    # The bindings of the table need their exchange.
    declared, sentence = RULES[name]
    base = {"exchanges": [{"vhost": "celery", "name": "celery.results"}]}
    if name == "default exchange":
        base = {}
    (found,) = judged({**base, **declared})
    assert sentence in found


@pytest.mark.parametrize(
    "declared",
    [
        {"users": [{"name": "new", "password": "p"}], **ADMITTED},
        {"users": [{"name": "new", "password": "p", "tags": ["monitoring"]}]},
        {"policies": [POLICY]},
        {"policies": [{**NEW, "pattern": "results", "apply_to": "streams", "definition": {"max-age": "1D"}}]},
        {"policies": [{**NEW, "pattern": r"^\Qcelery.\E", "definition": {"expires": 1}}]},
        {"bindings": [{**BINDING, "source": "amq.topic"}]},
        {"vhosts": [{"name": "n"}], "queues": [{"vhost": "n", "name": "q", "arguments": {"x-of-a-plugin": 1}}]},
        {"vhost_limits": [{**NEW, "name": "max-queues", "value": -1}]},
    ],
)
def test_what_works_is_not_complained_about(declared: dict[str, Any]) -> None:
    assert judged(declared) == []


@pytest.mark.parametrize("more", [{"pattern": "^y"}, {"pattern": "results", "apply_to": "quorum_queues"}])
def test_policy_that_matches_nothing_yet_is_reported_and_works(more: dict[str, Any]) -> None:
    declared = {"policies": [{**NEW, "definition": {"expires": 1}, **more}]}
    assert judged(declared) == []
    (remark,) = rules.remarks(plan_of(declared), "4.0.5")
    assert "matches nothing" in remark
    assert list(rules.remarks(plan_of(declared, examples=["y"]), "4.0.5")) == []


def test_options_of_a_queue_are_its_arguments() -> None:
    queue = {**NEW, "arguments": {"x-overflow": "drop-head"}, "message_ttl": 5, "dead_letter_exchange": "dlx"}
    present, _ = topology.declared({"queues": [queue]})
    assert present["queues"]["celery", "new"]["arguments"] == {
        "x-overflow": "drop-head",
        "x-message-ttl": 5,
        "x-dead-letter-exchange": "dlx",
    }
    with pytest.raises(topology.DeclarationError, match="has both 'max_length' and x-max-length"):
        topology.declared({"queues": [{**NEW, "max_length": 1, "arguments": {"x-max-length": 1}}]})


@pytest.mark.parametrize(("when", "differs"), [("on_create", False), ("always", True)])
def test_password_of_an_existing_user_is_left_alone_if_it_is_only_for_new_ones(when: str, differs: bool) -> None:
    users = [{"name": name, "password": "another", "update_password": when} for name in ("worker", "new")]
    found = topology.differences(*topology.declared({"users": users}), FOUND)
    assert [change.key[0] for change in found] == (["worker", "new"] if differs else ["new"])


def test_a_policy_for_later_names_what_it_is_for() -> None:
    declared = {"policies": [{**NEW, "pattern": "^later", "definition": {"expires": 1}}]}
    assert judged(declared, examples=["later.1"]) == []
    (wrong,) = judged(declared, examples=["later.1", "sooner"])
    assert "does not match its example 'sooner'" in wrong


def test_removing_the_last_rights_of_a_declared_user_is_reported() -> None:
    (wrong,) = judged({"users": [{"name": "worker"}]}, kinds=["permissions"], vhosts=["celery"])
    assert "worker would have no rights" in wrong
    declared = {
        "users": [{"name": "worker"}],
        "permissions": [{"vhost": "celery", "user": "worker", "state": "absent"}],
    }
    assert "worker would have no rights" in judged(declared)[0]


def test_a_declaration_of_what_was_found_changes_nothing() -> None:
    pasted = topology.declaration(FOUND, None, defaults=False)
    assert compare(pasted) == []
    assert "password" not in str(pasted)
    assert compare(topology.declaration(FOUND, ["celery"], defaults=True)) == []
    assert {queue["vhost"] for queue in topology.declaration(FOUND, ["celery"], defaults=False)["queues"]} == {"celery"}


def test_details_of_vhosts_are_read_only_where_the_definitions_lack_them() -> None:
    old = {"definitions": {"vhosts": [{"name": "v"}]}, "vhosts": [{"name": "v", "description": "d"}]}
    assert topology.read(Memory(answers=dict(old)), vhost_details=False) == {"vhosts": [{"name": "v"}]}
    detailed = topology.actual(topology.read(Memory(answers=old), vhost_details=True))
    assert detailed["vhosts"] == {("v",): {"description": "d", "tags": [], "default_queue_type": "classic"}}


def test_a_queue_that_is_created_carries_its_type() -> None:
    api = Memory()
    writing.apply(api, changes({"queues": [{**STREAM, "name": "q"}]}), FOUND)
    assert api.sent[0][2]["arguments"] == {"x-max-age": "1D", "x-queue-type": "stream"}


OF_OTHERS = {
    "users": [{"name": name, "tags": [], **stored("x")} for name in ("guest", "worker", "shop", "kept")],
    "permissions": [{"vhost": vhost, "user": "shop", "configure": "", "write": "", "read": ""} for vhost in "/x"],
    "policies": [{"vhost": "x", "name": "theirs", "pattern": ".*", "definition": {"max-length": 1}}],
}
OURS: dict[str, Any] = {
    "users": [{"name": "worker"}, {"name": "guest", "state": "absent"}],
    "permissions": [{"vhost": "x", "user": "worker"}],
    "bindings": [{"vhost": "x", "source": "a", "destination": "b"}],
}


def test_first_run_names_what_it_would_delete_of_others():
    prune = topology.Prune(["users", "permissions", "policies"], ["x"], ["kept"])
    found = topology.of_others(OF_OTHERS, {**OURS, "policies": []}, "x", prune)
    assert sorted(found) == ["permissions x/shop", "policies x/theirs", "users shop"]


def test_later_run_finds_nothing_of_others():
    mark = {"global_parameters": [{"name": "celery.results.partitions.x", "value": 16}]}
    assert topology.of_others({**OF_OTHERS, **mark}, OURS, "x", topology.Prune(["users"])) == []


def binding(source, destination, destination_type="queue"):
    return ("x", source, destination_type, destination, "", "{}")


@pytest.mark.parametrize(
    ("key", "goes"),
    [
        (binding("celery.results", "spy"), True),
        (binding("celery.results", "spies", "exchange"), True),
        (binding("amq.topic", "celery.results", "exchange"), True),
        (binding("celery.results", "celery.reply.1"), False),
        (binding("celery.results", "celery.reply.1", "exchange"), True),
        (binding("celery.reply.1", "celery.results", "exchange"), True),
        (binding("orders", "mail"), False),
        (binding("", "spy"), False),
    ],
)
def test_foreign_bindings_of_declared_exchanges_go(key, goes):
    prune = topology.Prune(["foreign_bindings"], ["x"], [r"celery\.reply\..*"])
    exchanges = {("x", "celery.results")}
    assert list(prune.doomed(topology.KIND["bindings"], [key], [], exchanges)) == ([key] if goes else [])


def test_foreign_bindings_need_a_vhost():
    with pytest.raises(topology.DeclarationError, match="'prune_vhosts' is empty, so foreign_bindings"):
        topology.Prune(["foreign_bindings"])

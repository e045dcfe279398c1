"""rabbitmq_topology and rabbitmq_topology_info against RabbitMQ 3.10 and 4.0."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
import uuid
from urllib.parse import quote

import pytest
from amqp import Connection, Message
from amqp.exceptions import NotAllowed
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_topology_writing as writing
from ansible_collections.celeryops.hybrid.plugins.modules import rabbitmq_topology, rabbitmq_topology_info
from waiting import until

ODD = "a b/c'd\"e#%?ü漢"
PASSWORD = "a pass/word with ünicode & 'quotes' 1"
ROTATED = "another pass/word 2"


@pytest.fixture(scope="session")
def login(host, secrets):
    with host.tunnel(15672) as port:
        yield {"url": f"http://127.0.0.1:{port}", "username": "admin", "password": secrets["rabbitmq_admin"]}


@pytest.fixture(scope="session")
def topology(login, module):
    def run(check=False, **declared):
        return module(rabbitmq_topology, check=check, **{**login, **declared})

    return run


@pytest.fixture(scope="session")
def info(login, module):
    def run(**options):
        return module(rabbitmq_topology_info, **{**login, **options})["topology"]

    return run


@pytest.fixture
def vhost(topology):
    name = f"t/{uuid.uuid4().hex[:8]} ü"
    topology(vhosts=[{"name": name}])
    yield name
    done = topology(vhosts=[{"name": name, "state": "absent"}])
    assert not done.get("failed"), done


@pytest.fixture
def user(topology, vhost):
    name = f"u/{uuid.uuid4().hex[:8]} ü"
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    done = topology(
        users=[{"name": name, "password": PASSWORD}], permissions=[{"vhost": vhost, "user": name, **everything}]
    )
    assert not done.get("failed"), done
    yield name
    topology(users=[{"name": name, "state": "absent"}])


@pytest.fixture
def connect(host, vhost, user):
    def connect(password=PASSWORD):
        connection = Connection(
            host=f"{host.address}:5672", userid=user, password=password, virtual_host=vhost, connect_timeout=10
        )
        connection.connect()
        return connection

    return connect


def request(login, method, path):
    """Ask the management API."""
    asked = urllib.request.Request(f"{login['url']}/api/{path}", method=method)
    credentials = base64.b64encode(f"{login['username']}:{login['password']}".encode()).decode()
    asked.add_header("Authorization", f"Basic {credentials}")
    return json.loads(urllib.request.urlopen(asked, timeout=10).read() or b"null")


def counted(login, vhost, name, messages):
    """Wait until the statistics count so many messages."""
    path = f"queues/{quote(vhost, safe='')}/{quote(name, safe='')}"
    until(lambda: request(login, "GET", path).get("messages") == messages)


def shovels(host, login, verb):
    """Enable or disable the plugin."""
    host.shell(f"rabbitmq-plugins --quiet {verb} rabbitmq_shovel")
    until(lambda: verb == "disable" or "rabbitmq_shovel" in request(login, "GET", "nodes")[0]["enabled_plugins"])


# kind: an object, then the same with something else (None where RabbitMQ cannot change it in place).
TABLE = {
    "vhosts": ({"description": ODD, "tags": ["b", "a"]}, {"description": "d", "tags": []}),
    "users": ({"password": PASSWORD, "tags": ["monitoring"]}, {"password": ROTATED, "tags": ["management"]}),
    "vhost_limits": ({"name": "max-queues", "value": 50}, {"name": "max-queues", "value": 60}),
    "user_limits": ({"name": "max-connections", "value": 5}, {"name": "max-connections", "value": 6}),
    "permissions": ({"read": "^a"}, {"read": "^a", "write": "^b"}),
    "topic_permissions": ({"exchange": ODD, "write": "^x"}, {"exchange": ODD, "write": "^y"}),
    "global_parameters": (
        {"name": ODD, "value": {"a": [1, "ü"], "b": {}, "c": 0.5, "d": None}},
        {"name": ODD, "value": {"a": [1]}},
    ),
    "policies": (
        {"pattern": "amq", "apply_to": "exchanges", "definition": {"alternate-exchange": ODD}},
        {"pattern": "amq", "apply_to": "all", "definition": {"alternate-exchange": ODD}, "priority": 3},
    ),
    "operator_policies": (
        {"pattern": "later", "apply_to": "queues", "definition": {"max-length": 9}, "examples": ["later"]},
        {"pattern": "later", "apply_to": "queues", "definition": {"max-length": 8}, "examples": ["later"]},
    ),
    "exchanges": ({"type": "topic", "internal": True, "arguments": {"alternate-exchange": ODD}}, None),
    "queues": (
        {"type": "classic", "durable": False, "arguments": {"x-max-length": 3, "x-overflow": "drop-head"}},
        None,
    ),
    "bindings": (
        {"source": "amq.headers", "destination": "q", "routing_key": ODD, "arguments": {"x-match": "all", "n": 1}},
        None,
    ),
}
OWNED = {
    "users": {"name": ODD},
    "vhosts": {"name": ODD},
    "policies": {"name": ODD},
    "operator_policies": {"name": ODD},
    "exchanges": {"name": ODD},
    "queues": {"name": ODD},
}


@pytest.mark.parametrize("kind", TABLE)
def test_do_again_check_diff_change_absent_absent_again(kind, topology, vhost, user):
    topology(queues=[{"vhost": vhost, "name": "q"}])
    fields, other = TABLE[kind]
    spec = rabbitmq_topology.argument_spec()[kind]["options"]
    place = {name: value for name, value in (("vhost", vhost), ("user", user)) if name in spec}
    item = {**place, **OWNED.get(kind, {}), **fields}

    def actions(done):
        assert not done.get("failed"), done
        assert done["changed"] == bool(done["differences"])
        assert PASSWORD not in str(done)
        assert ROTATED not in str(done)
        return [one["action"] for one in done["differences"]]

    # The rights of a fixture's user are there already.
    first = "update" if kind == "permissions" else "create"
    checked = topology(check=True, **{kind: [item]})
    assert actions(checked) == [first]
    made = topology(**{kind: [item]})
    assert (made["differences"], made["diff"]) == (checked["differences"], checked["diff"])
    assert actions(topology(**{kind: [item]})) == []
    if other:
        changed = {**item, **other}
        assert actions(topology(check=True, **{kind: [changed]})) == ["update"]
        assert actions(topology(**{kind: [changed]})) == ["update"]
        assert actions(topology(**{kind: [changed]})) == []
    gone = {**item, "state": "absent"}
    assert actions(topology(check=True, **{kind: [gone]})) == ["delete"]
    assert actions(topology(**{kind: [gone]})) == ["delete"]
    assert actions(topology(**{kind: [gone]})) == []


def test_rotated_password_is_applied(topology, user, connect):
    connect().close()
    done = topology(users=[{"name": user, "password": ROTATED}])
    assert [one["action"] for one in done["differences"]] == ["update"]
    assert ROTATED not in str(done)
    connect(ROTATED).close()
    assert not topology(users=[{"name": user, "password": ROTATED}])["changed"]


def test_what_info_returns_can_be_declared(topology, info, vhost, user):
    topology(
        queues=[{"vhost": vhost, "name": ODD, "type": "quorum"}, {"vhost": vhost, "name": "s", "type": "stream"}],
        exchanges=[{"vhost": vhost, "name": ODD, "type": "fanout"}],
        bindings=[{"vhost": vhost, "source": ODD, "destination": ODD, "routing_key": "#"}],
    )
    found = info()
    assert {(queue["name"], queue["type"]) for queue in info(vhosts=[vhost])["queues"]} == {
        (ODD, "quorum"),
        ("s", "stream"),
    }
    done = topology(**found)
    assert (done.get("msg"), done["changed"]) == (None, False)
    assert "password" not in str(found)
    assert "hash" not in str(found)


def test_bad_input_changes_nothing(topology, info, vhost):
    before = info()
    done = topology(
        queues=[{"vhost": vhost, "name": "q"}],
        bindings=[{"vhost": vhost, "source": "gone", "destination": "q"}],
        policies=[{"vhost": vhost, "name": "p", "pattern": "(", "definition": {"max-length": 1}}],
        users=[{"name": "nobody", "password": PASSWORD}],
    )
    assert len(done["problems"]) == 3
    assert "unsupported" in topology(queues=[{"vhost": vhost, "name": "q", "tpye": "x"}])["msg"].lower()
    assert "declared twice" in topology(queues=[{"vhost": vhost, "name": "q"}] * 2)["msg"]
    assert info() == before


def test_half_failed_run_reports_what_was_done_and_goes_on(topology, vhost):
    declared = {
        "exchanges": [{"vhost": vhost, "name": "first"}, {"vhost": vhost, "name": "bad", "type": "x-no-such-type"}],
        "queues": [{"vhost": vhost, "name": "last"}],
    }
    done = topology(**declared)
    assert (done["failed"], done["changed"]) == (True, True)
    assert done["done"] == [f"exchanges {vhost}/first"]
    assert done["left"] == [f"exchanges {vhost}/bad", f"queues {vhost}/last"]
    assert "x-no-such-type" in done["msg"]
    declared["exchanges"][1]["type"] = "direct"
    assert [one["name"] for one in topology(**declared)["differences"]] == [f"{vhost}/bad", f"{vhost}/last"]


def test_prune_deletes_undeclared_and_keeps_protected_objects(topology, info, vhost, user):
    mine = {"vhost": vhost, "name": "mine"}
    topology(queues=[mine, {**mine, "name": "theirs"}, {**mine, "name": "celery.reply.x"}])
    topology(exchanges=[{**mine, "name": "theirs"}])
    assert not topology(queues=[mine])["changed"]
    done = topology(queues=[mine], prune=["queues"], prune_vhosts=[vhost])
    assert [(one["action"], one["name"]) for one in done["differences"]] == [("delete", f"{vhost}/theirs")]
    assert {queue["name"] for queue in info(vhosts=[vhost])["queues"]} == {"mine", "celery.reply.x"}
    assert [exchange["name"] for exchange in info(vhosts=[vhost])["exchanges"]] == ["theirs"]
    # Who asks is never pruned, nor what RabbitMQ has for itself.
    keep = ["worker", "client", "letters", "monitoring"]
    done = topology(check=True, prune=["users", "global_parameters"], protected=[*keep, r"celery\..*"])
    assert [one["name"] for one in done["differences"]] == [user]


def test_no_message_is_deleted(topology, login, info, vhost, connect):
    queues = {kind: {"vhost": vhost, "name": f"{ODD} {kind}", "type": kind} for kind in ("classic", "quorum", "stream")}
    topology(queues=list(queues.values()))
    with connect() as connection, connection.channel() as channel:
        channel.confirm_select()
        for queue in queues.values():
            channel.basic_publish_confirm(Message("m"), routing_key=queue["name"])
    for kind, queue in queues.items():
        counted(login, vhost, queue["name"], 1)
        others = ".* ({})".format("|".join(set(queues) - {kind}))
        other = {**queue, "arguments": {"x-max-length-bytes": 1000000}}
        for declared in (
            {"queues": [{**queue, "state": "absent"}]},
            {"queues": [other]},
            {"queues": [other], "recreate": "empty"},
            {"prune": ["queues"], "prune_vhosts": [vhost], "protected": [others]},
        ):
            assert topology(check=True, **declared)["differences"][0]["action"] == "conflict", declared
            refused = topology(**declared)
            assert refused["failed"], declared
            assert "holds 1 message" in refused["msg"] or "set 'recreate'" in refused["msg"]
    assert "holds 3 messages" in topology(vhosts=[{"name": vhost, "state": "absent"}])["msg"]
    assert len(info(vhosts=[vhost])["queues"]) == 3
    for queue in queues.values():
        request(login, "DELETE", f"queues/{quote(vhost, safe='')}/{quote(queue['name'], safe='')}")


def test_empty_queue_is_recreated_and_bound_as_before(topology, info, vhost, connect, monkeypatch):
    # Nothing has ever been in it, so no statistics need to be waited for.
    monkeypatch.setattr(writing, "STALE", 1)
    queue, exchange = {"vhost": vhost, "name": ODD}, {"vhost": vhost, "name": "e"}
    binding = {"vhost": vhost, "source": "e", "destination": ODD, "routing_key": ODD}
    topology(queues=[queue], exchanges=[exchange], bindings=[binding])
    before = info(vhosts=[vhost])["bindings"]
    wanted = {"queues": [{**queue, "type": "quorum"}], "exchanges": [{**exchange, "type": "topic"}]}
    assert "cannot change this in place" in topology(**wanted)["msg"]
    with connect():
        time.sleep(0.5)
        assert "Clients are connected" in topology(recreate="empty", **wanted)["msg"]
    assert [one["action"] for one in topology(recreate="empty", **wanted)["differences"]] == ["update", "update"]
    assert not topology(**wanted)["changed"]
    found = info(vhosts=[vhost])
    assert found["bindings"] == before
    assert "vhost_limits" not in found
    connect().close()


def test_messages_are_kept_by_a_shovel(host, topology, info, login, vhost, connect, monkeypatch):
    monkeypatch.setattr(writing, "STALE", 1)
    queue = {"vhost": vhost, "name": ODD, "type": "classic"}
    wanted = {"queues": [{**queue, "type": "quorum"}], "recreate": "messages-kept"}
    topology(queues=[queue], vhost_limits=[{"vhost": vhost, "name": "max-connections", "value": 7}])
    sent = [(f"m{number}", {"n": number, "t": {"a": [1, "ü"]}}) for number in range(20)]
    with connect() as connection, connection.channel() as channel:
        channel.confirm_select()
        for body, headers in sent:
            message = Message(body, application_headers=headers, delivery_mode=2, correlation_id=body)
            channel.basic_publish_confirm(message, routing_key=ODD)
    counted(login, vhost, ODD, len(sent))
    assert "rabbitmq_shovel" in topology(**wanted)["msg"]
    shovels(host, login, "enable")
    try:
        done = topology(**wanted)
        assert not done.get("failed"), done
    finally:
        shovels(host, login, "disable")
    found = info(vhosts=[vhost])
    assert [(one["name"], one["type"]) for one in found["queues"]] == [(ODD, "quorum")]
    assert [one["value"] for one in found["vhost_limits"]] == [7]
    with connect() as connection, connection.channel() as channel:
        got = [channel.basic_get(ODD, no_ack=True) for _ in sent]
        assert [(one.body, one.headers["n"], one.headers["t"]) for one in got] == [
            (body, headers["n"], headers["t"]) for body, headers in sent
        ]
        assert [one.correlation_id for one in got] == [body for body, _ in sent]
    counted(login, vhost, ODD, 0)


def test_closed_vhost_is_reported(topology, vhost, connect):
    done = topology(vhost_limits=[{"vhost": vhost, "name": "max-connections", "value": 0}])
    assert "lets no client in" in str(done["warnings"])
    with pytest.raises(NotAllowed):
        connect()

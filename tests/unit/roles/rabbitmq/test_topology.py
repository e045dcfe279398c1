"""The declared rights in RabbitMQ: what each user may touch, and what not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.filter.rabbitmq_objects import rabbitmq_objects
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rabbitmq_objects import ABOUT

from celery_hybrid.rabbitmq import objects

ROOT = Path(__file__).parents[4]
DECLARED = json.loads((ROOT / "celery-hybrid/src/celery_hybrid/rabbitmq/topology.json").read_text())
TOPOLOGY = DECLARED["objects"]
RIGHTS = {item["user"].strip("${}"): item for item in TOPOLOGY["permissions"]}

REPLY = "celery.reply.0b8cf7b1"
STREAM = "celery.results.15"


def may(user, right, name):
    # RabbitMQ searches with the pattern, it does not match the whole name.
    return re.search(RIGHTS[f"{user}_user"].get(right, "^$"), name) is not None


@pytest.mark.parametrize("user", ["worker", "client"])
@pytest.mark.parametrize(
    ("right", "allowed"),
    [
        ("configure", {REPLY}),
        ("write", {REPLY, "celery.results"}),
        ("read", {REPLY, "celery.results", STREAM}),
    ],
)
def test_workers_and_clients_have_the_least_rights(user, right, allowed):
    names = {
        REPLY,
        STREAM,
        "celery.results",
        "celery.results.x",
        "celery.dead_letters",
        "amq.default",
        "celeryXresults",
        "other.celery.results",
        "celery.reply",
    }
    assert {name for name in names if may(user, right, name)} == allowed


def test_workers_send_dead_letters_and_clients_only_results_that_they_refuse():
    assert {user: may(user, "write", "celery.dlx") for user in ("worker", "client", "monitoring")} == {
        "worker": True,
        "client": False,
        "monitoring": False,
    }
    assert {user: may(user, "write", "celery.refused") for user in ("worker", "client", "monitoring")} == {
        "worker": True,
        "client": True,
        "monitoring": False,
    }


def test_only_workers_read_the_chords_of_earlier_versions():
    assert {user: may(user, "read", "celery.chords") for user in ("worker", "client", "monitoring")} == {
        "worker": True,
        "client": False,
        "monitoring": False,
    }


@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_monitoring_touches_nothing(right):
    assert not any(may("monitoring", right, name) for name in (REPLY, STREAM, "celery.results", "celery.dlx", "a"))


def test_dead_letters_user_touches_nothing_else():
    names = (
        REPLY,
        STREAM,
        "celery.results",
        "celery.refused",
        "celery.dlx",
        "celery.dead_letters",
        "celery.dead_letters.x",
    )
    allowed = {
        right: [name for name in names if may("letters", right, name)] for right in ("configure", "write", "read")
    }
    assert allowed == {"configure": [], "write": ["celery.dlx"], "read": ["celery.dead_letters"]}


def test_guest_is_deleted():
    assert {"name": "guest", "state": "absent"} in TOPOLOGY["users"]


def test_policies_apply_to_what_they_name_and_to_nothing_else():
    patterns = {policy["name"]: policy["pattern"] for policy in TOPOLOGY["policies"]}
    names = [STREAM, "celery.results.0", "celery.results", "celery.dead_letters", REPLY, "xcelery.results.1"]
    assert [name for name in names if re.search(patterns["celery.results"], name)] == [STREAM, "celery.results.0"]
    assert [name for name in names if re.search(patterns["celery.dead_letters"], name)] == ["celery.dead_letters"]


def test_role_and_package_read_the_same_from_the_file():
    values = {name: each["default"] for name, each in DECLARED["values"].items()} | {"partitions": 3}
    passwords = {name: f"password {name}" for name, value in values.items() if value is None}
    package = objects.objects(partitions=3, **passwords)
    assert rabbitmq_objects(DECLARED, values | passwords) == {
        kind: [{name: value for name, value in item.items() if name not in ABOUT} for item in items]
        for kind, items in package.items()
    }


def test_values_of_the_file_are_variables_of_the_role():
    defaults = yaml.safe_load((ROOT / "roles/rabbitmq/defaults/main.yml").read_text())
    given = yaml.safe_load((ROOT / "roles/rabbitmq/vars/main.yml").read_text())["__rabbitmq_values"]
    assert list(given) == list(DECLARED["values"])
    for name, value in DECLARED["values"].items():
        assert value["variable"] in defaults
        assert value["variable"] in given[name]


def test_defaults_of_the_file_are_those_of_the_role():
    rendered = json.loads(Path(__file__).with_name("topology_defaults.json").read_text())
    filled = objects.objects()
    for user in rendered["users"]:
        user.pop("password", None)
    assert rendered == {
        kind: [{name: value for name, value in item.items() if name not in ABOUT} for item in items]
        for kind, items in filled.items()
    }


def test_missing_value_is_named():
    with pytest.raises(AnsibleFilterError, match="no value for 'admin_user'"):
        rabbitmq_objects(DECLARED, {"vhost": "celery"})

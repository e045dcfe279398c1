"""rabbitmq_objects_info against RabbitMQ 3.10 and 4.0."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.celeryops.hybrid.plugins.modules import rabbitmq_objects_info

BOTH = ["refused", "unreachable"]


@pytest.fixture(scope="module")
def login(host, secrets):
    with host.tunnel(15672) as port:
        yield {"url": f"http://127.0.0.1:{port}", "username": "admin", "password": secrets["rabbitmq_admin"]}


@pytest.mark.parametrize("check", [False, True])
def test_definitions_and_user_are_read(login, module, check):
    found = module(
        rabbitmq_objects_info, check=check, **login, objects={"definitions": [], "whoami": []}, allowed_failures=BOTH
    )
    assert (found["changed"], found["status"]) == (False, "read")
    assert found["objects"]["whoami"]["name"] == "admin"
    users = {user["name"]: user for user in found["objects"]["definitions"]["users"]}
    # What an import needs, so that a saved copy gives it back.
    assert users["admin"]["password_hash"]


def test_objects_of_a_vhost_are_read(login, module):
    found = module(rabbitmq_objects_info, **login, vhost="/", objects={"exchanges": ["name"], "overview": []})
    assert {"name": "amq.direct"} in found["objects"]["exchanges"]
    assert found["objects"]["overview"]["rabbitmq_version"]
    without = module(rabbitmq_objects_info, **login, objects={"exchanges": ["name"]})
    assert without["msg"] == "vhost: it is needed to read exchanges."


@pytest.mark.parametrize("wrong", [{"password": "of-nobody-at-all"}, {"username": "nobody"}])
def test_wrong_login_is_refused(login, module, wrong):
    asked = {**login, **wrong, "objects": {"definitions": []}}
    allowed = module(rabbitmq_objects_info, **asked, allowed_failures=["refused"])
    assert (allowed["status"], "objects" in allowed) == ("refused", False)
    failed = module(rabbitmq_objects_info, **asked, allowed_failures=["unreachable"])
    assert failed["msg"] == allowed["reason"]
    assert "refuses the user" in failed["msg"]


def test_server_that_does_not_answer_is_unreachable(login, module):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    asked = {**login, "url": f"http://127.0.0.1:{port}", "objects": {"definitions": []}}
    assert module(rabbitmq_objects_info, **asked, allowed_failures=["unreachable"])["status"] == "unreachable"
    assert "cannot be reached" in module(rabbitmq_objects_info, **asked, allowed_failures=["refused"])["msg"]

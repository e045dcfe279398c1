from __future__ import annotations

import http.client
import io
import json
import ssl
from contextlib import redirect_stdout
from email.message import Message
from urllib.error import HTTPError, URLError

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils import _rabbitmq_api
from ansible_collections.celeryops.hybrid.plugins.modules import rabbitmq_objects_info as subject

PASSWORD = "a-long-Passw0rd-of-the-administrator"
BOTH = ["refused", "unreachable"]


def refused(code: int) -> HTTPError:
    body = io.BytesIO(b'{"reason": "said by the node"}')
    return HTTPError("http://127.0.0.1:15672", code, "refused", Message(), body)


@pytest.fixture
def run_module(monkeypatch):
    """Run the module against answers by path; an answer that is an exception is raised. Return status and result."""

    def run(answers, **arguments):
        def open_url(url, **options):
            assert options["url_password"] == PASSWORD
            answer = answers[url.removeprefix("http://127.0.0.1:15672/api/")]
            if isinstance(answer, Exception):
                raise answer
            return io.BytesIO(json.dumps(answer).encode())

        monkeypatch.setattr(_rabbitmq_api, "open_url", open_url)
        out = io.StringIO()
        with (
            patch_module_args({"username": "admin", "password": PASSWORD, **arguments}),
            redirect_stdout(out),
            pytest.raises(SystemExit) as ended,
        ):
            subject.main()
        assert PASSWORD not in out.getvalue()
        return ended.value.code, json.loads(out.getvalue())

    return run


@pytest.mark.parametrize("allowed", [[], BOTH])
@pytest.mark.parametrize("check_mode", [False, True])
def test_objects_of_the_server_are_read_without_a_vhost(run_module, allowed, check_mode):
    answers = {"definitions": {"vhosts": [{"name": "/"}]}, "whoami": {"name": "admin"}}
    code, result = run_module(
        answers, objects={"definitions": [], "whoami": []}, allowed_failures=allowed, _ansible_check_mode=check_mode
    )
    assert code == 0
    assert (result["changed"], result["status"], result["objects"]) == (False, "read", answers)
    assert "reason" not in result


FAILURES = [
    (refused(401), "refused", "refuses the user 'admin'"),
    (URLError(ConnectionRefusedError(111, "Connection refused")), "unreachable", "cannot be reached"),
    (TimeoutError("timed out"), "unreachable", "cannot be reached"),
    (http.client.RemoteDisconnected("closed"), "unreachable", "cannot be reached"),
    (http.client.BadStatusLine("AMQP"), "unreachable", "cannot be reached"),
]


@pytest.mark.parametrize(("failure", "status", "sentence"), FAILURES)
@pytest.mark.parametrize("check_mode", [False, True])
def test_an_allowed_failure_is_returned(run_module, failure, status, sentence, check_mode):
    code, result = run_module(
        {"definitions": failure}, objects={"definitions": []}, allowed_failures=[status], _ansible_check_mode=check_mode
    )
    assert code == 0
    assert (result["changed"], result["status"]) == (False, status)
    assert sentence in result["reason"]
    assert "objects" not in result


@pytest.mark.parametrize(("failure", "status", "sentence"), FAILURES)
def test_a_failure_that_is_not_allowed_fails(run_module, failure, status, sentence):
    for allowed in ([], [other for other in BOTH if other != status]):
        code, result = run_module({"whoami": failure}, objects={"whoami": []}, allowed_failures=allowed)
        assert code == 1
        assert sentence in result["msg"]


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (refused(403), "RabbitMQ refuses GET definitions (HTTP 403): said by the node"),
        (refused(500), "RabbitMQ refuses GET definitions (HTTP 500): said by the node"),
        (URLError(ssl.SSLError("self-signed")), "is not trusted"),
    ],
)
def test_every_other_failure_fails_whatever_is_allowed(run_module, failure, sentence):
    code, result = run_module({"definitions": failure}, objects={"definitions": []}, allowed_failures=BOTH)
    assert code == 1
    assert sentence in result["msg"]


def test_an_object_of_a_vhost_needs_one(run_module):
    code, result = run_module({}, objects={"queues": [], "bindings": [], "nodes": []}, allowed_failures=BOTH)
    assert code == 1
    assert result["msg"] == "vhost: it is needed to read bindings, queues."


def test_another_failure_cannot_be_allowed(run_module):
    code, result = run_module({}, objects={"whoami": []}, allowed_failures=["untrusted"])
    assert code == 1
    assert "allowed_failures" in result["msg"]

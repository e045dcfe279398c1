"""The verifier's parts, without a server."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from celery import Celery, _state
from kombu.exceptions import ContentDisallowed

from celery_hybrid.masking import Mask
from celery_hybrid.verify import Check, CheckReport, VerifyRequest, VerifyRequestError, names
from celery_hybrid.verify.__main__ import print_table
from celery_hybrid.verify.canary import QueueCanary
from celery_hybrid.verify.report import Failed, Skipped
from celery_hybrid.verify.results import ResultChecks, age_seconds
from celery_hybrid.verify.runner import declared_queues
from celery_hybrid.verify.settings import Settings, canonical, reported_backend, value_of
from celery_hybrid.verify.workers import Workers

PASSWORD = "Pa55:w/ord@2#9"
ENCODED = "Pa55%3Aw%2Ford%402%239"


@pytest.fixture(autouse=True)
def _environment():
    """The verifier names its settings module in the environment; tests in the same process must not inherit it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def report():
    return CheckReport(Mask())


def test_a_check_that_needs_a_failed_one_is_not_run_and_fails(report):
    assert report.run("a", "good", lambda: "fine", remedy="r")
    assert not report.run("b", "good", lambda: fail("bad"), remedy="r", needs=["a"])
    assert not report.run("c", "good", lambda: pytest.fail("must not run"), remedy="r", needs=["a", "b"])
    assert not report.run("d", "good", lambda: pytest.fail("must not run"), remedy="r", needs=["c"])
    assert [(check.ok, check.blocked) for check in report.checks] == [
        (True, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    assert report.checks[2].actual == "not run, because b failed"
    assert report.as_dict()["summary"] == {"checks": 4, "passed": 1, "failed": 3}
    assert report.sentences() == ["b: bad; expected: good. r", "Not run because of these: c, d."]


def test_what_nobody_can_know_is_left_out_with_the_reason(report):
    def cannot():
        raise Skipped(f"ask {PASSWORD}")

    report.run("a", "good", lambda: "fine", remedy="r")
    report._mask.learn(f"amqp://:{PASSWORD}@h")
    assert not report.run("b", "good", cannot, remedy="r")
    assert report.ok
    assert report.as_dict()["skipped"] == {"b": "ask ********"}


def test_one_cause_is_told_once(report):
    for name in ("one", "two"):
        report.run(name, "e", lambda: fail("nobody knows"), remedy="Ask.")
    assert report.sentences() == ["one, two: nobody knows. Ask."]


def fail(actual, remedy=None):
    raise Failed(actual, remedy)


def test_a_verdict_may_bring_its_own_remedy(report):
    report.run("a", "good", lambda: fail("bad", "Do that."), remedy="Do this.")
    assert report.checks[0].remedy == "Do that."


def test_an_unexpected_exception_is_a_finding(report):
    report.run("a", "good", lambda: [][1], remedy="r")
    assert report.checks[0].actual == "IndexError: list index out of range"


def test_a_report_without_checks_is_not_ok(report):
    assert not report.ok


def test_a_check_that_is_left_out_is_listed_and_blocks_nothing():
    report = CheckReport(Mask(), ["a", "f"])
    report.run("a", "good", lambda: pytest.fail("must not run"), remedy="r")
    report.run("f[queue]", "good", lambda: pytest.fail("must not run"), remedy="r")
    report.run("b", "good", lambda: "fine", remedy="r", needs=["a"])
    assert report.ok
    assert list(report.skipped) == ["a", "f[queue]"]
    assert [check.name for check in report.checks] == ["b"]


@pytest.mark.parametrize(
    "source",
    [
        f"redis://celery:{ENCODED}@h:6379/0",
        f"redis://:{PASSWORD}@h:6379/0",
        f"amqp://u:{ENCODED}@h1;amqp://u:{ENCODED}@h2/v",
        f"sentinel://u:{ENCODED}@h1:26379;sentinel://h2:26379",
    ],
)
def test_no_form_of_a_password_is_printed(source):
    mask = Mask([source, None, "plain"])
    for text in (source, f"user {PASSWORD} is wrong", f"got {ENCODED}", repr(source)):
        assert PASSWORD not in mask(text)
        assert ENCODED not in mask(text)
    assert mask("nothing to hide at redis://h:6379/0") == "nothing to hide at redis://h:6379/0"


def test_passwords_of_unknown_urls_are_masked_too():
    assert Mask()("cannot reach amqps://u:other-secret@h:5671/v") == "cannot reach amqps://u:********@h:5671/v"


def test_a_report_masks_everything():
    report = CheckReport(Mask([f"redis://:{ENCODED}@h"]))
    report.run("a", PASSWORD, lambda: fail(f"no {PASSWORD}", f"see {ENCODED}"), remedy="r")
    assert PASSWORD not in json.dumps(report.as_dict())
    assert ENCODED not in json.dumps(report.as_dict())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a JSON object, not list"),
        ({"ap": "x"}, "unknown field 'ap'; did you mean 'app'?"),
        ({"zzz": 1}, "unknown field 'zzz'"),
        ({"queues": "celery"}, "'queues' must be list, not str"),
        ({"app": 3}, "'app' must be str or null, not int"),
        ({"canary_timeout": True}, "'canary_timeout' must be int or float, not bool"),
        ({"skip": ["broker.reachabel"]}, "no check 'broker.reachabel'; did you mean 'broker.reachable'?"),
        ({"skip": ["settings.file"]}, "cannot be left out"),
    ],
)
def test_a_wrong_request_is_refused(data, message):
    with pytest.raises(VerifyRequestError) as caught:
        VerifyRequest.from_mapping(data)
    assert message in str(caught.value)


def test_a_request_is_read():
    request = VerifyRequest.from_mapping({"app": None, "queues": ["a"], "canary_timeout": 3, "skip": ["canary.redis"]})
    assert request.queues == ["a"]
    assert request.skip == ["canary.redis"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accept_content", ("application/json", "pickle", "json"), ["json", "pickle"]),
        ("accept_content", {"json"}, ["json"]),
        ("result_expires", "1 day, 0:00:00", 86400),
        ("result_expires", "2 days, 1:00:01", 176401),
        ("result_expires", "0:30:00", 1800),
        ("result_expires", 86400.0, 86400),
        ("result_expires", "soon", "soon"),
        ("task_acks_late", True, True),
    ],
)
def test_values_are_compared_in_one_form(name, value, expected):
    assert canonical(name, value) == expected


def test_values_that_are_not_set_mean_what_celery_takes():
    assert value_of({"timezone": None, "enable_utc": True}, "timezone") == "UTC"
    assert value_of({"accept_content": ["json"]}, "result_accept_content") == ["json"]
    assert value_of({"broker_transport_options": {"visibility_timeout": 60}}, "broker_transport_options.x") is None


@pytest.mark.parametrize(("text", "seconds"), [("86400s", 86400), ("7D", 604800), ("1Y", 31536000), ("x", None)])
def test_max_age(text, seconds):
    assert age_seconds(text) == seconds


def test_the_result_backend_of_a_report():
    app = Celery(broker="redis://h", backend="redis://u:some-password@h/1", set_as_current=False)
    found = reported_backend(app.bugreport())
    assert found is not None
    assert found.startswith("redis://u:*")
    assert "some-password" not in found


@pytest.mark.parametrize(
    ("conf", "queues"),
    [
        ({}, ["celery"]),
        ({"task_default_queue": "d"}, ["d"]),
        ({"task_queues": {"a": {}, "b": {}}}, ["a", "b"]),
    ],
)
def test_declared_queues(conf, queues):
    app = Celery(set_as_current=False)
    app.conf.update(conf)
    assert declared_queues(app) == queues


def test_a_canary_knows_its_partition():
    canary = QueueCanary("q", 16)
    assert canary.stream == f"celery.results.{zlib.crc32(canary.id.encode()) % 16}"


# Settings

GOOD = {
    "broker_url": "redis://u:broker-password@h:6379/0",
    "result_backend": "cache+memory://",
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "timezone": "UTC",
    "enable_utc": True,
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
    "result_expires": 86400,
    "broker_pool_limit": 10,
    "task_time_limit": 300,
    "broker_transport_options": {"visibility_timeout": 600},
}


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    """Writes a configuration module, and an application beside it."""
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Shared tasks of other tests would count as the application's.
    own = {each for each in _state._on_app_finalizers if each.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)

    def write(application=None, **changes):
        name = f"config_{tmp_path.name}".replace("-", "_")
        lines = [f"{key} = {value!r}" for key, value in {**GOOD, **changes}.items()]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        app = None
        if application is not None:
            app = f"app_{tmp_path.name}".replace("-", "_")
            (tmp_path / f"{app}.py").write_text(application)
        return Settings(app, name, [str(tmp_path)])

    return write


def verdicts(settings, expected=None):
    report = CheckReport(Mask(os.environ.values()))
    if settings.check_loading(report):
        settings.check_values(report, expected or {})
    return {check.name: check for check in report.checks}


def test_good_settings_pass(configuration):
    found = verdicts(configuration())
    failed = {name for name, check in found.items() if not check.ok}
    assert failed == {"settings.result_backend"}, "this one is Celery's own, on purpose"
    assert "celery.backends.cache" in found["settings.result_backend"].actual


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"task_serializer": "pickle"}, "settings.task_serializer", "pickle"),
        ({"result_serializer": "yaml"}, "settings.result_serializer", "yaml"),
        ({"accept_content": ["json", "pickle"]}, "settings.accept_content", "json, pickle"),
        ({"result_accept_content": ["pickle"]}, "settings.result_accept_content", "pickle"),
        ({"accept_content": ["json", "pickle"]}, "settings.result_accept_content", "json, pickle"),
        ({"timezone": "Europe/Berlin"}, "settings.timezone", "Europe/Berlin"),
        ({"enable_utc": False}, "settings.enable_utc", "False"),
        ({"task_acks_late": False}, "settings.task_acks_late", "False"),
        ({"worker_prefetch_multiplier": 4}, "settings.worker_prefetch_multiplier", "4"),
        ({"result_expires": None}, "settings.result_expires", "None"),
        ({"result_expires": 0}, "settings.result_expires", "0"),
        ({"broker_pool_limit": None}, "settings.broker_pool_limit", "None"),
        ({"broker_pool_limit": 0}, "settings.broker_pool_limit", "0"),
        ({"task_time_limit": None}, "settings.visibility_timeout", "no task_time_limit"),
        ({"task_time_limit": 600}, "settings.visibility_timeout", "600 s, and task_time_limit 600 s"),
        ({"broker_transport_options": {}, "task_time_limit": 7200}, "settings.visibility_timeout", "3600 s"),
        ({"result_backend": None}, "settings.result_backend", "dropped"),
        ({"result_backend": "rpc://"}, "settings.result_backend", "celery.backends.rpc"),
        ({"result_backend": "redis://h/1"}, "settings.result_backend", "celery.backends.redis"),
        ({"result_backend": "nonsense://h"}, "settings.result_backend", "nonsense:// has no backend"),
    ],
)
def test_each_wrong_setting_fails_its_own_check(configuration, changes, name, message):
    check = verdicts(configuration(**changes))[name]
    assert not check.ok
    assert message in check.actual
    assert check.remedy


def test_the_backend_of_this_package_is_the_right_one(configuration):
    found = verdicts(configuration(result_backend="celery_hybrid.verify.report:CheckReport+amqp://u:p@h/celery"))
    assert found["settings.result_backend"].ok


def test_expected_values_are_rules_over_the_house_rules(configuration):
    found = verdicts(
        configuration(),
        {"result_expires": 3600, "task_default_queue": "celery", "visibility_timeout": 600, "task_acks_late": False},
    )
    assert not found["settings.result_expires"].ok
    assert found["settings.result_expires"].expected == "3600"
    assert found["settings.task_default_queue"].ok
    assert found["settings.visibility_timeout"].ok
    assert not found["settings.task_acks_late"].ok


def test_a_missing_configuration_module(configuration, tmp_path):
    settings = Settings(None, "no_such_module_here", [str(tmp_path)])
    found = verdicts(settings)
    assert list(found) == ["settings.file"]
    assert "no_such_module_here cannot be imported" in found["settings.file"].actual


def test_neither_a_module_nor_an_application(configuration):
    configuration()
    assert "neither" in verdicts(Settings(None, None, []))["settings.file"].actual


APPLICATION = "from celery import Celery\napp = Celery('x', set_as_current=False)\n"


def test_an_application_that_leaves_the_file_alone(configuration):
    found = verdicts(configuration(APPLICATION + "@app.task\ndef one(): pass\n"))
    assert found["settings.application"].ok
    assert found["settings.application"].actual == "x, 1 task of its own"


def test_an_application_that_overrides_the_file(configuration):
    found = verdicts(configuration(APPLICATION + "app.conf.task_serializer = 'pickle'\n"))
    assert not found["settings.application"].ok
    assert found["settings.application"].actual == "task_serializer is pickle, the file says json"
    assert not found["settings.task_serializer"].ok, "what counts is what the application does"


# Its tasks are imported only when a worker starts.
APPLICATION_PLUS = APPLICATION + "app.conf.imports = ['no_tasks_here']\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "AttributeError"),
        (APPLICATION_PLUS, "No module named 'no_tasks_here'"),
    ],
)
def test_an_application_that_does_not_load(configuration, code, message):
    found = verdicts(configuration(code))
    assert list(found) == ["settings.file", "settings.application"]
    assert message in found["settings.application"].actual


# Workers


PICKLED = "pickled"


class Inspected(Workers):
    """Workers whose answers are given."""

    def __init__(self, nodes, answers):
        super().__init__(None, nodes, 1.0)
        self.answers = answers

    def _request(self, command, destination, timeout, **arguments):
        replies = {n: reply for n, reply in self.answers[command].items() if not destination or n in destination}
        if PICKLED in replies.values():
            raise ContentDisallowed("untrusted content of type pickle")
        return replies


AGREED = {"task_serializer": "json", "accept_content": ["json"], "result_expires": 86400, "result_backend": "amqp://h"}
CONF = {
    "task_serializer": "json",
    "broker_pool_limit": 8,
    "accept_content": ["application/json"],
    "result_expires": "1 day, 0:00:00",
}


def answers(**changes):
    nodes = ["a@h1", "b@h2"]
    every = {
        "ping": {node: {"ok": "pong"} for node in nodes},
        "conf": {node: dict(CONF) for node in nodes},
        "active_queues": {"a@h1": [{"name": "one"}], "b@h2": [{"name": "one"}, {"name": "two"}]},
        "report": {node: {"ok": "settings -> transport:redis results:amqp://h\n"} for node in nodes},
        "stats": {
            "a@h1": {"pool": {"max-concurrency": 4, "implementation": "celery.concurrency.prefork:TaskPool"}},
            "b@h2": {"pool": {"max-concurrency": 50, "implementation": "celery.concurrency.thread:TaskPool"}},
        },
        "result_store": {node: {"outbox": {"count": 0, "refused": 0, "dropped": 0}} for node in nodes},
    }
    every.update(changes)
    return every


def inspected(nodes=("a@h1", "b@h2"), queues=("one", "two"), declared=("one", "two"), **changes):
    workers = Inspected(nodes, answers(**changes))
    report = CheckReport(Mask())
    workers.check(report, AGREED, queues, declared)
    return workers, {check.name: check for check in report.checks}


def test_workers_that_agree():
    workers, found = inspected()
    assert all(check.ok for check in found.values())
    assert found["workers.queues"].actual == "one: a@h1, b@h2; two: b@h2"
    assert workers.unconsumed(["one", "two", "three"]) == ["three"]


def test_a_missing_node_is_named_and_the_others_are_still_compared():
    workers, found = inspected(nodes=["a@h1", "b@h2", "c@h3"])
    assert "no answer from c@h3" in found["workers.answer"].actual
    assert found["settings.workers"].ok
    assert workers.unconsumed(["three"]) == [], "the silent one may consume it"


def test_a_worker_of_another_application_is_named_and_not_judged():
    stock = {"conf": {"a@h1": dict(CONF), "b@h2": {"task_serializer": "pickle"}}}
    stock["result_store"] = {"a@h1": answers()["result_store"]["a@h1"]}
    _, found = inspected(nodes=["a@h1"], queues=["one"], declared=["one", "three"], **others("b@h2"), **stock)
    assert found["workers.answer"].actual == "1 answered: a@h1; not this application's, by their queues: b@h2"
    assert found["settings.workers"].actual == "4 settings agree on a@h1"
    assert found["workers.outbox"].actual == "empty on a@h1"


@pytest.mark.parametrize(
    "known", [{"nodes": ["a@h1", "b@h2"]}, {"declared": ["one", "other"]}, {"queues": ["one", "other"]}, "silent"]
)
def test_a_worker_that_may_be_this_application_s_is_judged(known):
    stock = {"conf": {"a@h1": dict(CONF), "b@h2": {"task_serializer": "pickle"}}}
    arguments = {"nodes": ["a@h1"], "queues": ["one"], "declared": ["one"], **others("b@h2")}
    if known == "silent":
        del arguments["active_queues"]["b@h2"]
    else:
        arguments.update(known)
    _, found = inspected(**arguments, **stock)
    assert "b@h2: task_serializer is pickle" in found["settings.workers"].actual


def others(node):
    queues = answers()["active_queues"]
    return {"active_queues": {**queues, node: [{"name": "other"}]}}


def test_only_workers_of_others_answer():
    _, found = inspected(nodes=(), queues=["mine"], declared=["mine"])
    assert found["workers.answer"].actual == "no worker of this application answered, only of others: a@h1, b@h2"
    assert found["settings.workers"].blocked


def test_no_worker_at_all():
    nobody = {"ping": {}, "conf": {}, "active_queues": {}, "report": {}}
    _, found = inspected(nodes=(), **nobody)
    assert found["workers.answer"].actual == "no worker answered"
    assert found["settings.workers"].blocked
    assert not found["workers.queues"].ok


def test_a_worker_with_another_setting_is_named_with_setting_and_value():
    conf = {"a@h1": dict(CONF), "b@h2": {**CONF, "task_serializer": "pickle"}}
    report = {
        "a@h1": {"ok": "results:redis://u:********@h\n"},
        "b@h2": {"ok": "results:amqp://h\n"},
    }
    _, found = inspected(conf=conf, report=report)
    assert found["settings.workers"].actual == (
        "a@h1: result_backend is redis://u:********@h, the file says amqp://h; "
        "b@h2: task_serializer is pickle, the file says json"
    )


def test_a_worker_that_cannot_tell_its_configuration():
    _, found = inspected(conf={"a@h1": dict(CONF), "b@h2": {"error": "TypeError()"}})
    assert found["settings.workers"].actual == "b@h2 cannot report its configuration: TypeError()"


def test_a_worker_that_answers_with_pickle_is_named():
    pickled = {"b@h2": PICKLED, "a@h1": {"ok": "pong"}}
    _, found = inspected(ping=pickled, conf={**pickled, "a@h1": dict(CONF)})
    assert found["workers.answer"].actual == (
        "b@h2 answers in a format that is not accepted here: untrusted content of type pickle"
    )
    assert found["settings.workers"].ok, "the others are still compared"


def test_an_unknown_worker_that_answers_with_pickle():
    pickled = {"b@h2": PICKLED}
    _, found = inspected(nodes=(), ping=pickled, conf=pickled)
    assert "some worker answers in a format that is not accepted here" in found["workers.answer"].actual


REDIS_SAYS = {"maxclients": "60", "connected_clients": "9"}
NODES = [{"sockets_total": 16, "fd_total": 99}]
OVERVIEW = {"object_totals": {"connections": 2}}


@pytest.mark.parametrize(
    ("broker", "results", "ok", "message"),
    [
        (REDIS_SAYS, {"nodes": NODES}, True, "Redis: 60 may be needed, 60 are allowed, 9 are open; RabbitMQ: 16 may"),
        ({**REDIS_SAYS, "maxclients": "59"}, {"nodes": NODES}, False, "Redis: 60 may be needed, 59 are allowed"),
        (
            REDIS_SAYS,
            {"nodes": [{"fd_total": 15}], "overview": OVERVIEW},
            False,
            "16 may be needed, 15 are allowed, 2 are open",
        ),
        (None, {"nodes": NODES}, False, "no facts of the Redis host were given"),
        (REDIS_SAYS, {"error": "results1 says: no"}, False, "results1 says: no"),
    ],
)
def test_connections_are_compared_with_what_the_servers_allow(broker, results, ok, message):
    workers, _ = inspected()
    report = CheckReport(Mask())
    workers.check_connections(report, broker, results)
    assert report.ok is ok
    assert message in report.checks[0].actual


def test_a_queue_that_nobody_consumes():
    _, found = inspected(queues=["one", "three"])
    assert found["workers.queues"].actual == "no worker consumes three"


@pytest.mark.parametrize(
    ("state", "actual"),
    [
        ({"outbox": {"count": 7, "refused": 0, "dropped": 0}}, "b@h2: 7 results waiting"),
        ({"outbox": {"count": 0, "refused": 2, "dropped": 0}}, "b@h2: 2 results refused by RabbitMQ for good"),
        ({"outbox": {"count": 0, "refused": 0, "dropped": 2}}, "empty on a@h1, b@h2"),
        ({"outbox": {"count": 0}, "dead_letters": {"count": 3, "refused": 0}}, "b@h2: 3 dead letters waiting"),
        (
            {"outbox": {"count": 1}, "dead_letters": {"count": 0, "refused": 2}},
            "b@h2: 1 result waiting; b@h2: 2 dead letters refused by RabbitMQ for good",
        ),
        (
            {"outbox": {"count": 0}, "dead_letters": {"error": "the outbox /y is damaged"}},
            "b@h2: the outbox /y is damaged",
        ),
        ({"outbox": {"path": "/x", "error": "the outbox /x cannot be used"}}, "b@h2: the outbox /x cannot be used"),
        ({}, "b@h2 does not report it"),
        ({"error": "KeyError"}, "b@h2 does not report it"),
    ],
)
def test_results_that_wait_are_told(state, actual):
    empty = {"outbox": {"count": 0, "refused": 0, "dropped": 0}}
    _, found = inspected(result_store={"a@h1": empty, "b@h2": state})
    assert found["workers.outbox"].actual == actual


# Topology, from the facts of the management API


def facts(partitions=2):
    streams = [f"celery.results.{n}" for n in range(partitions)]
    return {
        "host": "results1",
        "exchanges": [
            {"name": "celery.results", "type": "direct", "durable": True, "auto_delete": False, "internal": False},
            {"name": "celery.dlx", "type": "topic", "durable": True, "auto_delete": False, "internal": False},
        ],
        "queues": [
            {
                "name": name,
                "durable": True,
                "auto_delete": False,
                "type": "stream",
                "arguments": {"x-queue-type": "stream"},
                "effective_policy_definition": {"max-age": "86400s"},
            }
            for name in streams
        ]
        + [
            {
                "name": "celery.dead_letters",
                "durable": True,
                "auto_delete": False,
                "arguments": {"x-queue-type": "quorum"},
                "effective_policy_definition": {"delivery-limit": 2147483647},
            },
        ],
        "bindings": [
            {"source": "", "destination": name, "destination_type": "queue", "routing_key": name} for name in streams
        ]
        + [
            {"source": "celery.results", "destination": name, "destination_type": "queue", "routing_key": name}
            for name in [*streams, "celery.reply.1"]
        ]
        + [
            {
                "source": "celery.dlx",
                "destination": "celery.dead_letters",
                "destination_type": "queue",
                "routing_key": "#",
            }
        ],
        "policies": [],
    }


def topology(facts, method, *arguments):
    results = ResultChecks("amqp://h", {"partitions": 2}, 1.0, facts)
    return getattr(results, method)(*arguments)


def test_a_declared_topology_passes():
    assert topology(facts(), "_declared_exchange", "celery.results", "direct") == "direct, durable"
    assert topology(facts(), "_partitions") == "2 streams"
    assert topology(facts(), "_bindings") == "2 bindings"
    assert topology(facts(), "_expiry", 86400.0) == "max-age 86400s"
    assert topology(facts(), "_dlx") == "topic, durable"
    assert topology(facts(), "_dead_letters") == "quorum, durable, bound with #"


def change(kind, name, **changes):
    found = facts()
    for each in found[kind]:
        if each.get("name", each.get("destination")) == name:
            each.update(changes)
    return found


def without(kind, name):
    found = facts()
    found[kind] = [each for each in found[kind] if each.get("name", each.get("destination")) != name]
    return found


@pytest.mark.parametrize(
    ("given", "method", "arguments", "message"),
    [
        (
            change("exchanges", "celery.results", durable=False),
            "_declared_exchange",
            ("celery.results", "direct"),
            "durable is False",
        ),
        (
            change("exchanges", "celery.results", type="topic"),
            "_declared_exchange",
            ("celery.results", "direct"),
            "type is topic",
        ),
        (without("exchanges", "celery.dlx"), "_dlx", (), "celery.dlx does not exist"),
        (change("exchanges", "celery.dlx", durable=False), "_dlx", (), "durable is False"),
        (facts(partitions=3), "_partitions", (), "RabbitMQ has 3 streams, the configuration says 2"),
        (facts(partitions=1), "_partitions", (), "RabbitMQ has 1 stream, the configuration says 2"),
        (without("bindings", "celery.results.1"), "_bindings", (), "not bound: celery.results.1"),
        (
            change("bindings", "celery.reply.1", routing_key="celery.results.1"),
            "_bindings",
            (),
            "celery.reply.1 by 'celery.results.1'",
        ),
        (
            change("queues", "celery.results.1", effective_policy_definition={}),
            "_expiry",
            (86400.0,),
            "no max-age, so records are kept indefinitely: celery.results.1",
        ),
        (
            change("queues", "celery.results.0", effective_policy_definition={"max-age": "1h"}),
            "_expiry",
            (86400.0,),
            "celery.results.0 drops records after 1h, result_expires is 86400 s",
        ),
        (without("queues", "celery.dead_letters"), "_dead_letters", (), "does not exist"),
        (
            change("queues", "celery.dead_letters", arguments={"x-queue-type": "classic"}),
            "_dead_letters",
            (),
            "type is classic",
        ),
        (without("bindings", "celery.dead_letters"), "_dead_letters", (), "is not bound"),
        (
            change("queues", "celery.dead_letters", effective_policy_definition={}),
            "_dead_letters",
            (),
            "the delivery limit of celery.dead_letters is not set, not 2147483647",
        ),
        (
            change("queues", "celery.dead_letters", arguments={"x-queue-type": "quorum", "x-delivery-limit": 20}),
            "_dead_letters",
            (),
            "the delivery limit of celery.dead_letters is 20",
        ),
        (None, "_bindings", (), "no facts of the RabbitMQ host were given"),
        ({"error": "HTTP 401 from results1"}, "_dlx", (), "HTTP 401 from results1"),
        ({"bindings": [1]}, "_bindings", (), "malformed"),
    ],
)
def test_each_difference_of_the_topology_is_explained(given, method, arguments, message):
    with pytest.raises(Failed) as caught:
        topology(given, method, *arguments)
    assert message in caught.value.actual


def test_a_policy_counts_before_the_management_api_says_what_is_in_force():
    found = facts()
    for queue in found["queues"]:
        queue.pop("effective_policy_definition", None)
    found["policies"] = [
        {"pattern": "^celery", "apply-to": "queues", "priority": 0, "definition": {"max-age": "1h"}},
        {"pattern": r"^celery\.results\.\d+$", "apply-to": "all", "priority": 1, "definition": {"max-age": "2D"}},
        {"pattern": ".*", "apply-to": "exchanges", "priority": 9, "definition": {"max-age": "1s"}},
    ]
    assert topology(found, "_expiry", 86400.0) == "max-age 2D"


# The command


def command(*arguments, stdin="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "celery_hybrid.verify", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_command_lists_the_checks():
    ended = command("--names")
    assert ended.returncode == 0
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(names.NAMES)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--request", "-"], "not json", "Expecting value"),
        (["--request", "-"], '{"ap": 1}', "did you mean 'app'?"),
        (["--facts", "/nowhere.json"], "", "/nowhere.json"),
        (["--skip", "nonsense"], "", "no check 'nonsense'"),
    ],
)
def test_the_command_refuses_what_it_cannot_read(arguments, stdin, message):
    ended = command(*arguments, stdin=stdin)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_answers_json_whatever_the_application_prints(configuration, tmp_path):
    # Nothing listens on port 1, so this ends early.
    configuration(
        "print('noise of the application')\n" + APPLICATION,
        broker_url=f"redis://u:{ENCODED}@127.0.0.1:1/0",
        result_backend=f"amqp://u:{ENCODED}@127.0.0.1:1/celery",
    )
    app = next(path.stem for path in tmp_path.glob("app_*.py"))
    module = next(path.stem for path in tmp_path.glob("config_*.py"))
    request = {"app": app, "config_module": module, "python_path": [str(tmp_path)]}
    ended = command("--request", "-", stdin=json.dumps(request))
    assert ended.returncode == 1
    assert "noise of the application" in ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    found = {line["check"]["name"]: line["check"] for line in lines[:-1]}
    assert lines[-1]["end"]["checks"] == len(found)
    assert "127.0.0.1:1 refuses the connection" in found["broker.reachable"]["actual"]
    assert "127.0.0.1:1 refuses the connection" in found["results.reachable"]["actual"]
    assert found["canary.roundtrip[celery]"]["blocked"]
    assert PASSWORD not in ended.stdout + ended.stderr
    assert ENCODED not in ended.stdout + ended.stderr
    listed = {name for name in names.NAMES if "[" not in name}
    assert listed <= set(found), "every check is answered, whatever fails"


def test_the_table():
    report = CheckReport(Mask(), ["c"])
    report.checks = [Check("a.b", True, "e", "fine", "", 1.0), Check("a.long", False, "e", "bad", "Do it.", 2.0)]
    report.skipped = {"c": "", "d": "nobody may look"}
    out = io.StringIO()
    print_table(report, out)
    assert out.getvalue() == (
        "ok      a.b          1.0 ms  fine\n"
        "FAILED  a.long       2.0 ms  bad\n"
        "-       c                    left out\n"
        "-       d                    left out: nobody may look\n"
        "\n1 of 2 checks passed\n"
        "\na.long: bad; expected: e. Do it.\n"
    )


def test_every_name_in_the_code_is_a_documented_one():
    source = "".join(path.read_text() for path in Path(names.__file__).parent.glob("*.py") if path.name != "names.py")
    used = set(re.findall(r'"((?:broker|results|dead_letters|workers|canary)\.[a-z_]+)"', source))
    assert used
    assert used <= set(names.NAMES)


def test_versions_that_are_too_old(monkeypatch):
    from celery_hybrid.verify import settings

    assert "celery 5." in settings.versions()
    monkeypatch.setattr(settings.metadata, "version", lambda name: {"kombu": "5.4.2"}.get(name, "9.0.0"))
    with pytest.raises(Failed, match=r"kombu 5\.4\.2: older ones lose tasks"):
        settings.versions()

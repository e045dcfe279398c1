"""The verifier against real servers, without a backend or a worker: records are published by hand."""

from __future__ import annotations

import json
import os
import time
import uuid
from urllib.parse import urlsplit

import amqp
import pytest
import redis
from celery import Celery
from environment import needed

from celery_hybrid.masking import Mask
from celery_hybrid.verify.broker import Broker
from celery_hybrid.verify.canary import Canaries, QueueCanary, StreamWatcher
from celery_hybrid.verify.report import CheckReport, Failed
from celery_hybrid.verify.results import EXCHANGE, ResultChecks

PARTITIONS = int(os.environ.get("CELERY_HYBRID_TEST_PARTITIONS", "16"))


@pytest.fixture
def results(results_url):
    return ResultChecks(results_url, {"partitions": PARTITIONS}, 5.0, None)


@pytest.fixture
def app(broker_url, monkeypatch):
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)
    return Celery(broker=broker_url, backend="cache+memory://", set_as_current=False)


def publish(connection, canary, *, exchange=EXCHANGE, status="SUCCESS", result=None, **properties):
    body = {"task_id": canary.id, "status": status, "result": canary.nonce if result is None else result}
    message = amqp.Message(
        json.dumps(body),
        **{
            "content_type": "application/json",
            "delivery_mode": 2,
            "correlation_id": canary.id,
            "type": "result",
            "application_headers": {"status": status},
            **properties,
        },
    )
    channel = connection.channel()
    channel.confirm_select()
    channel.basic_publish_confirm(message, exchange=exchange, routing_key=canary.stream, mandatory=True)
    channel.close()


@pytest.fixture
def canary():
    return QueueCanary("celery", PARTITIONS)


@pytest.fixture
def archived(results, app, canary):
    """Publishes records, then reads them as the check does."""

    def run(*records, seconds=2.0):
        with results.connect() as connection:
            archive = StreamWatcher(connection, [canary.stream])
            with results.connect() as publisher:
                for record in records:
                    publish(publisher, canary, **record)
            canaries = Canaries(app, None, results, [], [], 1.0)
            return canaries._archived(canary, archive, seconds)

    return run


def test_a_record_is_found_and_read_again(archived, canary):
    told = archived({"status": "STARTED"}, {})
    assert told.startswith(f"{canary.stream} offset ")
    assert "application/json, in a stream" in told


def test_a_record_of_another_task_is_not_mine(archived, canary):
    with pytest.raises(Failed, match="received no record of task"):
        archived({"correlation_id": str(uuid.uuid4())}, seconds=0.5)


def test_a_task_without_success(archived):
    with pytest.raises(Failed, match="received only STARTED, RETRY of task"):
        archived({"status": "STARTED"}, {"status": "RETRY"}, seconds=0.5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"content_type": "application/x-python-serialize"}, "content type is application/x-python-serialize"),
        ({"result": "something else"}, "its body is not this task's result"),
    ],
)
def test_a_wrong_record_is_refused(archived, record, message):
    with pytest.raises(Failed, match=message):
        archived(record)


def test_many_records_of_others_do_not_hide_mine(results, app, canary):
    with results.connect() as connection:
        archive = StreamWatcher(connection, [canary.stream])
        with results.connect() as publisher:
            for _ in range(600):
                publish(publisher, canary, correlation_id=str(uuid.uuid4()))
            publish(publisher, canary)
        assert "read twice" in Canaries(app, None, results, [], [], 1.0)._archived(canary, archive, 5.0)


def test_a_missing_stream_is_explained(results):
    with results.connect() as connection, pytest.raises(Failed, match=r"celery\.results\.999 does not exist"):
        StreamWatcher(connection, ["celery.results.999"])


def verdict(probe):
    report = CheckReport(Mask())
    report.run("x", "", probe, remedy="")
    return report.checks[0]


def test_the_topology_exists(results):
    assert results._reachable()
    assert "RabbitMQ " in results._authenticated()
    assert results._partitions() == f"{PARTITIONS} streams"
    # Durability is only known from the management API.
    for probe in (results._exchange, results._streams):
        assert verdict(probe).actual.startswith("undecided:")


def test_another_number_of_partitions_is_seen(results_url):
    fewer = ResultChecks(results_url, {"partitions": PARTITIONS - 1}, 5.0, None)
    assert f"more than {PARTITIONS - 1} streams" in verdict(fewer._partitions).actual
    more = ResultChecks(results_url, {"partitions": PARTITIONS + 1}, 5.0, None)
    assert verdict(more._streams).actual == f"missing: celery.results.{PARTITIONS}"


def changed(url, **parts):
    from urllib.parse import quote, urlsplit

    found = urlsplit(url)
    user = parts.get("user", found.username)
    password = parts.get("password", found.password)
    path = parts.get("path", found.path)
    port = parts.get("port", found.port)
    return f"{found.scheme}://{user}:{quote(password, safe='%')}@{found.hostname}:{port}{path}"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"password": "wrong-password-here"}, "refuses the password of user"),
        ({"user": "nobody", "password": "wrong-password-here"}, "refuses the password of user 'nobody'"),
        ({"path": "/nowhere"}, "has no virtual host 'nowhere'"),
        ({"path": "/%2F"}, "has no rights in the virtual host '/'"),
    ],
)
def test_each_refused_login_to_rabbitmq_is_explained(results_url, parts, message):
    results = ResultChecks(changed(results_url, **parts), {}, 5.0, None)
    check = verdict(results._authenticated)
    assert message in check.actual
    assert "wrong-password" not in check.actual


def test_rabbitmq_on_a_port_where_it_is_not(results_url, broker_url):
    assert (
        "refuses the connection" in verdict(ResultChecks(changed(results_url, port=1), {}, 5.0, None)._reachable).actual
    )
    # Redis answers there, but not in AMQP.
    parts = urlsplit(broker_url)
    other = ResultChecks(f"amqp://u:p@{parts.hostname}:{parts.port}/celery", {}, 1.0, None)
    assert verdict(other._authenticated).actual.startswith(("the connection breaks", "RabbitMQ accepts the connection"))


@pytest.fixture
def broker(app):
    broker = Broker(app, 5.0)
    yield broker
    broker.close()


def test_the_broker(broker):
    # What other tests have left.
    broker.client.delete("celery.undeliverable", "celery.undecodable")
    report = CheckReport(Mask())
    broker.check(report, {"maxmemory_policy": "noeviction", "host": "broker1"})
    assert report.ok, report.sentences()


def test_rights_to_one_prefix_are_enough(broker_url):
    prefix = "verify-test."
    with redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN")) as admin:
        admin.execute_command("ACL", "SETUSER", "verify-test", "on", ">x", f"~{prefix}*", "&*", "+@all")
        parts = urlsplit(broker_url)
        url = parts._replace(netloc=f"verify-test:x@{parts.netloc.rpartition('@')[2]}").geturl()
        try:
            for options, right in (({"global_keyprefix": prefix}, True), ({}, False)):
                app = Celery(broker=url, set_as_current=False)
                app.conf.broker_transport_options = options
                broker = Broker(app, 5.0)
                assert verdict(broker._authorised).ok == right
                broker.close()
        finally:
            admin.execute_command("ACL", "DELUSER", "verify-test")


@pytest.mark.parametrize("key", ["celery.undeliverable", "celery.undecodable"])
def test_a_broker_in_which_something_is_stranded(broker, key):
    broker.client.delete("celery.undeliverable", "celery.undecodable")
    broker.client.lpush(key, "x")
    report = CheckReport(Mask())
    try:
        broker.check(report, {"maxmemory_policy": "noeviction"})
    finally:
        broker.client.delete(key)
    assert [check.name for check in report.checks if not check.ok] == ["broker.stranded"]
    assert f"1 in {key}" in report.sentences()[0]


def test_a_host_whose_clock_is_wrong(broker, monkeypatch):
    monkeypatch.setattr("celery_hybrid.verify.broker.time.time", lambda: time.monotonic())
    report = CheckReport(Mask())
    broker.check(report, {"maxmemory_policy": "noeviction"})
    assert "broker.clock" in [check.name for check in report.checks if not check.ok]
    assert "behind Redis" in " ".join(report.sentences())


def test_bindings(broker, app, results):
    app.conf.task_queues = {"celery": {"exchange": "verify-test"}}
    report = CheckReport(Mask())
    table = "_kombu.binding.verify-test"
    try:
        broker.check_bindings(report, ["celery"])
        assert "not bound: celery to verify-test" in report.sentences()[0]
        broker.client.sadd(table, "celery\x06\x16\x06\x16celery")
        report = CheckReport(Mask())
        broker.check_bindings(report, ["celery"])
        assert report.ok, report.sentences()
    finally:
        broker.client.delete(table)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_broker_that_may_evict(broker, policy):
    report = CheckReport(Mask())
    broker.check(report, {"maxmemory_policy": policy, "host": "broker1"})
    assert report.sentences()[0].startswith(f"broker.cannot_evict: {policy}, as broker1 says; expected")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (None, "no facts of the Redis host were given"),
        ({"host": "b", "error": "redis-cli: timeout"}, "redis-cli: timeout"),
    ],
)
def test_a_broker_of_which_nobody_knows(broker, facts, message):
    report = CheckReport(Mask())
    broker.check(report, facts)
    assert [check.name for check in report.checks if not check.ok] == ["broker.cannot_evict"]
    assert f"undecided: a worker's rights do not show it, and {message}" in report.sentences()[0]


@pytest.mark.parametrize(
    ("parts", "name", "message"),
    [
        ({"password": "wrong-password-here"}, "broker.authenticated", "refuses the password of user"),
        ({"user": "nobody"}, "broker.authenticated", "refuses the password of user 'nobody'"),
        ({"port": 1}, "broker.reachable", "refuses the connection"),
    ],
)
def test_each_refused_login_to_redis_is_explained(broker_url, app, parts, name, message):
    app.conf.broker_url = changed(broker_url, **parts)
    broker = Broker(app, 2.0)
    report = CheckReport(Mask([app.conf.broker_url]))
    broker.check(report, None)
    broker.close()
    failed = next(check for check in report.checks if not check.ok)
    assert failed.name == name
    assert message in failed.actual
    assert "wrong-password" not in json.dumps(report.as_dict())


def test_a_parked_message_leaves_nothing(broker, app):
    before = set(broker.client.scan_iter("celery.verify.*"))
    canaries = Canaries(app, broker, ResultChecks(None, {}, 1.0, None), [], [], 1.0)
    assert canaries._parked_message().startswith("application/json, utf-8, ")
    app.conf.task_serializer = "pickle"
    with pytest.raises(Failed, match="application/x-python-serialize"):
        canaries._parked_message()
    assert set(broker.client.scan_iter("celery.verify.*")) == before


def test_a_canary_that_nobody_takes_is_taken_back(broker, app):
    queue = f"test.verify.{uuid.uuid4()}"
    canaries = Canaries(app, broker, ResultChecks(None, {}, 1.0, None), [queue], [], 0.5)
    canary = canaries._canaries[0]
    check = verdict(lambda: canaries._round_trip(canary))
    assert "no worker took the task within 0.5 s; it was removed again" in check.actual
    assert not list(broker.client.scan_iter(f"{queue}*"))
    for key in broker.client.scan_iter(f"_kombu.binding*{queue}"):
        broker.client.delete(key)


def test_a_queue_without_a_consumer_gets_no_canary(broker, app):
    canaries = Canaries(app, broker, ResultChecks(None, {}, 1.0, None), ["lonely"], ["lonely"], 0.5)
    assert verdict(lambda: canaries._round_trip(canaries._canaries[0])).actual.startswith("not sent")
    assert not canaries._canaries[0].sent


@pytest.mark.parametrize("where", ["celery-task-meta-{id}", "somewhere.{id}.else"])
def test_a_key_of_the_result_in_redis_is_found(broker, app, canary, where):
    canaries = Canaries(app, broker, ResultChecks(None, {}, 1.0, None), [], [], 0.5)
    assert "none of " in canaries._not_in_redis(canary)
    key = where.format(id=canary.id)
    broker.client.set(key, "x", px=10_000)
    with pytest.raises(Failed, match=f"found, and removed: {key}"):
        canaries._not_in_redis(canary)
    assert not broker.client.exists(key)


def test_reading_is_quick(archived):
    started = time.monotonic()
    archived({})
    assert time.monotonic() - started < 2

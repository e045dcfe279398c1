"""What the users that the rabbitmq role makes may not do, tried on RabbitMQ 3.10 and 4.0."""

from __future__ import annotations

import uuid
from contextlib import contextmanager

import pytest
from amqp import Connection, Message
from amqp.exceptions import AccessRefused, AMQPError, NotFound
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ManagementApi
from waiting import until

REPLY = f"celery.reply.{uuid.uuid4().hex}"
EXPIRES = {"x-expires": 60000}


@pytest.fixture
def channel_of(host, secrets):
    @contextmanager
    def open_channel(user):
        password = secrets[f"rabbitmq_{user}"]
        connection = Connection(host=f"{host.address}:5672", userid=user, password=password, virtual_host="celery")
        connection.connect()
        try:
            yield connection.channel()
        finally:
            connection.collect()

    return open_channel


def letters(channel_of):
    """Return how many dead letters there are."""
    with channel_of("worker") as channel:
        return channel.queue_declare("celery.dead_letters", passive=True).message_count


def declare(channel, name=REPLY, **arguments):
    channel.queue_declare(name, durable=True, auto_delete=False, arguments={**EXPIRES, **arguments})


REFUSED = {
    "declare a queue": lambda channel: declare(channel, "orders"),
    "declare an exchange": lambda channel: channel.exchange_declare("orders", "topic"),
    "declare an archive stream": lambda channel: declare(channel, "celery.results.99"),
    "delete an archive stream": lambda channel: channel.queue_delete("celery.results.0"),
    "unbind an archive stream": lambda channel: channel.queue_unbind(
        "celery.results.0", "celery.results", "celery.results.0"
    ),
    "delete the exchange of results": lambda channel: channel.exchange_delete("celery.results"),
    "publish to any queue": lambda channel: publish(channel, "", "celery.dead_letters"),
    "read dead letters": lambda channel: channel.basic_get("celery.dead_letters"),
    "consume dead letters": lambda channel: channel.basic_consume("celery.dead_letters"),
    "purge dead letters": lambda channel: channel.queue_purge("celery.dead_letters"),
    "delete the dead letters": lambda channel: channel.queue_delete("celery.dead_letters"),
    "listen to dead letters": lambda channel: (declare(channel), channel.queue_bind(REPLY, "celery.dlx", "#")),
    "route elsewhere into the dead letters": lambda channel: channel.queue_bind(
        "celery.dead_letters", "celery.results", "x"
    ),
}
OF_CLIENTS = {
    "publish a dead letter": lambda channel: publish(channel, "celery.dlx", "task.failed"),
    "publish a dead letter by its reply queue": lambda channel: declare(
        channel, f"{REPLY}.x", **{"x-dead-letter-exchange": "celery.dlx", "x-dead-letter-routing-key": "task.failed"}
    ),
    "publish a dead letter by an alternate exchange": lambda channel: channel.exchange_declare(
        f"{REPLY}.y", "fanout", auto_delete=True, arguments={"alternate-exchange": "celery.dlx"}
    ),
    "turn results into dead letters": lambda channel: channel.exchange_bind("celery.dlx", "celery.results", "x"),
    "read the journal": lambda channel: channel.basic_get("celery.journal"),
}
OF_MONITORING = {
    "declare a reply queue": declare,
    "publish a result": lambda channel: publish(channel, "celery.results", "celery.results.0"),
    "publish a refused result": lambda channel: publish(channel, "celery.refused", "result.refused"),
    "read results": lambda channel: (channel.basic_qos(0, 1, False), channel.basic_consume("celery.results.0")),
}


def publish(channel, exchange, routing_key):
    channel.confirm_select()
    channel.basic_publish_confirm(Message("x"), exchange, routing_key)


@pytest.mark.parametrize(
    ("user", "deed"),
    [
        *(("worker", deed) for deed in REFUSED),
        *(("client", deed) for deed in {**REFUSED, **OF_CLIENTS}),
        *(("monitoring", deed) for deed in {**REFUSED, **OF_CLIENTS, **OF_MONITORING}),
    ],
)
def test_user_may_not(channel_of, user, deed):
    with channel_of(user) as channel, pytest.raises(AccessRefused):
        {**REFUSED, **OF_CLIENTS, **OF_MONITORING}[deed](channel)


@pytest.mark.parametrize("user", ["worker", "client"])
def test_user_has_a_reply_queue_of_its_own(channel_of, user):
    name = f"{REPLY}.{user}"
    with channel_of(user) as channel:
        declare(channel, name)
        channel.queue_bind(name, "celery.results", name)
        publish(channel, "celery.results", name)
        assert channel.basic_get(name, no_ack=True).body == "x"
        channel.queue_delete(name)


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
def test_reply_queue_of_any_type_is_limited_whatever_the_client_declares(channel_of, host, secrets, kind):
    name = f"{REPLY}.endless.{kind}"
    with channel_of("client") as channel, host.tunnel(15672) as port:
        channel.queue_declare(name, durable=True, auto_delete=False, arguments={"x-queue-type": kind})
        # The rabbitmqctl of RabbitMQ 3.10 does not list what policies add up to; the management API does.
        api = ManagementApi(f"http://127.0.0.1:{port}", "admin", secrets["rabbitmq_admin"])
        limits = until(lambda: api.get("queues", "celery", name).get("effective_policy_definition"))
        channel.queue_delete(name)
    assert limits["max-length-bytes"] > 0
    # A stream has no such limit.
    assert kind == "stream" or limits["expires"] > 0


def test_only_refused_results_of_clients_become_dead_letters(channel_of):
    before = letters(channel_of)
    with channel_of("client") as channel:
        publish(channel, "celery.refused", "task.failed")
        publish(channel, "celery.refused", "result.refused")
        declare(channel, f"{REPLY}.z", **{"x-dead-letter-exchange": "celery.refused", "x-message-ttl": 0})
        channel.queue_bind(f"{REPLY}.z", "celery.results", f"{REPLY}.z")
        publish(channel, "celery.results", f"{REPLY}.z")
    assert letters(channel_of) == before + 1


def test_monitoring_sees_counts_and_no_more(host, secrets):
    script = (
        "import base64, sys, urllib.error, urllib.request\n"
        "method, path, password = sys.stdin.read().split(chr(10))[:3]\n"
        "request = urllib.request.Request('http://127.0.0.1:15672/api/' + path, method=method, data=b'{}')\n"
        "user = base64.b64encode(b'monitoring:' + password.encode()).decode()\n"
        "request.add_header('Authorization', 'Basic ' + user)\n"
        "try:\n    print(urllib.request.urlopen(request, timeout=10).status)\n"
        "except urllib.error.HTTPError as error:\n    print(error.code)\n"
    )

    def status(method, path):
        done = host.shell(f'python3 -c "{script}"', f"{method}\n{path}\n{secrets['rabbitmq_monitoring']}\n")
        return int(done.stdout)

    assert status("GET", "queues/celery") == 200
    assert status("GET", "nodes") == 200
    assert status("PUT", "users/intruder") in (401, 403)
    assert status("PUT", "vhosts/intruder") in (401, 403)
    assert status("DELETE", "queues/celery/celery.dead_letters") in (401, 403)
    assert status("POST", "queues/celery/celery.dead_letters/get") in (400, 401, 403)


def test_worker_may_look_for_what_it_needs(channel_of):
    with channel_of("worker") as channel:
        for name in ("celery.results.0", "celery.journal", "celery.dead_letters"):
            try:
                channel.queue_declare(name, passive=True)
            except (NotFound, AMQPError) as error:
                pytest.fail(f"{name}: {error}")

"""Clients with stock Celery that know only the broker's URL, beside workers with this package's transport."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid

import kombu
import pytest
from celery import Celery
from kombu.transport import redis as stock

from celery_hybrid.broker import transport

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

STOCK = "kombu.transport.redis:Transport"
OURS = "celery_hybrid.broker.transport:Transport"


@pytest.fixture
def queue():
    return f"stock-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def note(worker_class, tmp_path, monkeypatch, queue):
    """Start a worker with default transport options; return it, and the words that its tasks have noted."""
    file = tmp_path / "done"
    file.touch()
    monkeypatch.setenv("TRANSPORT_TEST_FILE", str(file))
    monkeypatch.setenv("TRANSPORT_TEST_KIND", "atomic")
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    worker = worker_class("prefork", tmp_path / "worker.log", "-c", "1", "-Q", queue, app="transport_tasks")
    try:
        worker.wait_ready()
        worker.done = lambda: file.read_text().split()
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def client(broker_url):
    """An application that has the URL, and stock kombu."""
    app = Celery("client", broker=broker_url, set_as_current=False)
    app.conf.broker_transport = STOCK
    app.conf.task_create_missing_queue_type = "classic"
    yield app
    app.close()


def celery(broker_url, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "celery", f"--broker={broker_url}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def until(condition, explain, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.1)


def test_celery_with_the_url_only_inspects_workers(broker_url, note):
    assert "pong" in celery(broker_url, "inspect", "ping", "-d", note.name, "--timeout", "5")
    assert note.name in celery(broker_url, "status", "--timeout", "3")


def test_tasks_of_every_priority_that_a_stock_client_sends_run(client, note, queue):
    for priority in range(10):
        client.send_task("transport.note", (f"p{priority}",), queue=queue, priority=priority)
    until(lambda: len(note.done()) == 10, note.log.read_text)
    assert sorted(note.done()) == [f"p{priority}" for priority in range(10)]


def test_celery_migrate_moves_tasks_with_the_urls_only(broker_url, client, queue):
    client.send_task("transport.note", ("moved",), queue=queue, priority=6)
    target = f"{queue}-target"
    connection = client.connection_for_write()
    server = connection.default_channel.client
    try:
        said = celery(broker_url, "migrate", broker_url, broker_url, "-n", "1", "-t", "3", "-q", f"{queue}:{target}")
        assert "Traceback" not in said, said
        assert sum(server.llen(name) for name in (f"{target}\x06\x166", f"{queue}\x06\x166")) == 1
    finally:
        server.delete(
            f"{target}\x06\x166", f"{queue}\x06\x166", *(f"_kombu.binding.{name}" for name in (queue, target))
        )
        connection.release()


def test_a_client_with_another_separator_gets_its_answer_and_disturbs_no_other(broker_url, client, note):
    with kombu.Connection(broker_url, transport=STOCK, transport_options={"sep": ":"}) as strange:
        mailbox = client.control.mailbox(strange)
        try:
            # Its binding stays while others ask.
            with kombu.Consumer(strange, [mailbox.reply_queue(strange)], accept=["json"]):
                assert client.control.ping([note.name], timeout=5) == [{note.name: {"ok": "pong"}}]
                assert client.control.ping([note.name], timeout=5, connection=strange) == [{note.name: {"ok": "pong"}}]
        finally:
            # Not for the tests behind this one: workers with Celery's own transport cannot read it.
            server, table = strange.default_channel.client, "_kombu.binding.reply.celery.pidbox"
            server.srem(table, *(member for member in server.smembers(table) if b"::" in member))


# -- what older clients have left


@pytest.fixture
def channel(broker_url, queue):
    """A channel of this package's transport that consumes the queue."""
    with kombu.Connection(broker_url, transport=OURS) as connection:
        channel = connection.channel()
        consumer = kombu.Consumer(channel, [kombu.Queue(queue, kombu.Exchange(queue), queue)], on_message=list)
        consumer.consume()
        yield channel
        names = [queue, *(f"{queue}{sep}{step}" for sep in (":", stock.Channel.sep) for step in range(1, 10))]
        channel.client.delete(*names, f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")


def send(broker_url, queue, bodies, priority, **options):
    with kombu.Connection(broker_url, transport=STOCK, transport_options=options) as connection:
        producer = connection.Producer(serializer="json")
        for body in bodies:
            producer.publish(body, routing_key=queue, priority=priority)


def bodies(channel, name):
    """Return what is in a list, the next to be taken first."""
    messages = (json.loads(element) for element in channel.client.lrange(name, 0, -1))
    found = [channel.decode_body(message["body"], message["properties"]["body_encoding"]) for message in messages]
    return [json.loads(body) for body in reversed(found)]


def test_messages_under_another_separator_are_taken_over_in_their_order(broker_url, channel, queue):
    send(broker_url, queue, [3], 3)
    send(broker_url, queue, [1, 2], 3, sep=":")
    send(broker_url, queue, [9], 5, sep=":", priority_steps=list(range(10)))
    channel.client.lpush(f"{queue}:7", "data of another program")
    channel._checked = float("-inf")
    channel._check()
    name = f"{queue}{channel.sep}3"
    # Priority 5 has no list of its own here: the next more urgent one takes it.
    assert bodies(channel, name) == [9, 1, 2, 3]
    assert channel.client.lrange(f"{queue}:7", 0, -1) == [b"data of another program"]
    assert not channel.client.exists(f"{queue}:3", f"{queue}:5")


def test_a_message_stays_where_it_is_when_its_new_list_cannot_take_it(broker_url, channel, queue):
    send(broker_url, queue, [1], 3, sep=":")
    channel.client.set(f"{queue}{channel.sep}3", "no list")
    channel._checked = float("-inf")
    with pytest.raises(transport.ResponseError):
        channel._check()
    assert bodies(channel, f"{queue}:3") == [1]


def test_bindings_with_another_separator_are_rewritten_for_stock_clients(broker_url, channel, queue):
    table = f"_kombu.binding.{queue}"
    channel.client.sadd(table, "old::elsewhere", "no binding at all")
    assert ("old", "", "elsewhere") in channel.get_table(queue)
    channel._checked = float("-inf")
    channel._check()
    members = channel.client.smembers(table)
    assert channel.sep.join(("old", "", "elsewhere")).encode() in members
    assert b"old::elsewhere" not in members
    assert b"no binding at all" in members

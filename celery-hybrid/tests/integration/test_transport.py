"""The transport and kombu's own: the same contract, together on the same queues; and what only ours keeps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import kombu
import pytest
import redis
from kombu import Exchange, Queue

from celery_hybrid.broker import transport

pytestmark = pytest.mark.integration

SEP = "\x06\x16"  # kombu's default
KINDS = {"atomic": "celery_hybrid.broker.transport:Transport", "stock": "kombu.transport.redis:Transport"}


class Broker:
    """A part of Redis for one test, and connections to it."""

    def __init__(self, url, prefix):
        self.url = url
        self.prefix = prefix
        # Looks at what workers may not look at.
        self.redis = redis.Redis.from_url(os.environ.get("CELERY_HYBRID_TEST_BROKER_ADMIN", url), decode_responses=True)
        self.connections = []

    def connect(self, kind, **options):
        options = {"global_keyprefix": self.prefix, **options}
        connection = kombu.Connection(self.url, transport=KINDS[kind], transport_options=options)
        self.connections.append(connection)
        return connection

    def key(self, name):
        return self.prefix + name

    def send(self, bodies, queue="q", kind="stock", **options):
        with self.connect(kind) as connection:
            producer = connection.Producer(serializer="json")
            for body in bodies:
                producer.publish(body, routing_key=queue, **{"headers": {"number": body}, **options})

    def waiting(self, queue="q"):
        return sum(self.redis.llen(self.key(queue + step)) for step in ("", *(f"{SEP}{step}" for step in (3, 6, 9))))

    def waiting_lists(self, queue="q"):
        """Return how many messages wait, whatever else there is under the names of lists."""
        keys = [self.key(queue + step) for step in ("", *(f"{SEP}{step}" for step in (3, 6, 9)))]
        return sum(self.redis.llen(key) for key in keys if self.redis.type(key) == "list")

    def unacked(self):
        assert self.redis.hlen(self.key("unacked")) == self.redis.zcard(self.key("unacked_index"))
        return self.redis.hlen(self.key("unacked"))

    def close(self):
        for connection in self.connections:
            connection.release()
        if keys := list(self.redis.scan_iter(self.prefix + "*")):
            self.redis.delete(*keys)
        self.redis.close()


@pytest.fixture
def broker(broker_url):
    broker = Broker(broker_url, f"celery-tests-{uuid.uuid4().hex[:8]}.")
    yield broker
    broker.close()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def other(kind):
    return "stock" if kind == "atomic" else "atomic"


class Reader:
    """Consumes queues, and keeps the messages."""

    def __init__(self, connection, queues=("q",), prefetch=0, no_ack=False, received=None):
        self.connection = connection
        self.messages = []
        self.channel = connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        queues = [queue if isinstance(queue, Queue) else Queue(queue) for queue in queues]
        callback = received or self.messages.append
        self.consumer = kombu.Consumer(self.channel, queues, on_message=callback, no_ack=no_ack)
        self.consumer.consume()

    def read(self, count, timeout=5.0):
        """Wait until there are *count* messages, and a moment for more."""
        end = time.monotonic() + timeout
        while len(self.messages) < count and time.monotonic() < end:
            self.drain(0.2)
        self.drain(0.05)
        return [message.decode() for message in self.messages]

    def drain_one(self):
        with contextlib.suppress(TimeoutError):
            self.connection.drain_events(timeout=1)

    def drain(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                return


# -- the contract, of both


def test_messages_come_in_order_and_are_acknowledged(broker, kind):
    broker.send(range(20))
    reader = Reader(broker.connect(kind), prefetch=50)
    assert reader.read(20) == list(range(20))
    assert (broker.waiting(), broker.unacked()) == (0, 20)
    for message in reader.messages:
        message.ack()
    assert broker.unacked() == 0


def test_urgent_messages_come_first(broker, kind):
    for priority in (9, 6, 3, 0):
        broker.send([priority], priority=priority)
    assert Reader(broker.connect(kind)).read(4) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("strategy", "order"),
    [("round_robin", "ababab"), ("priority", "bbbaaa"), ("sorted", "aaabbb")],
)
def test_several_queues_take_turns(broker, kind, strategy, order):
    broker.send(["b"] * 3, "b")
    broker.send(["a"] * 3, "a")
    names = ("a", "b") if strategy == "round_robin" else ("b", "a")
    reader = Reader(broker.connect(kind, queue_order_strategy=strategy), names, prefetch=10)
    orders = {order}
    if strategy != "sorted" and not hasattr(transport.stock.Channel, "unacked_restore_interval"):
        # kombu before 5.7 keeps its queues in a set.
        orders.add(order[::-1])
    assert "".join(reader.read(6)) in orders


def test_no_more_than_the_prefetch_count(broker, kind):
    broker.send(range(10))
    reader = Reader(broker.connect(kind), prefetch=3)
    assert reader.read(3) == [0, 1, 2]
    assert (broker.waiting(), broker.unacked()) == (7, 3)
    reader.messages[0].ack()
    assert reader.read(4) == [0, 1, 2, 3]


def test_a_requeued_message_comes_again_last(broker, kind):
    broker.send([1, 2])
    reader = Reader(broker.connect(kind), prefetch=1)
    assert reader.read(1) == [1]
    reader.messages[0].requeue()
    assert reader.read(2) == [1, 2]
    reader.messages[1].ack()
    assert reader.read(3) == [1, 2, 1]
    assert reader.messages[2].headers["redelivered"]
    assert reader.messages[2].delivery_info["redelivered"]


def test_a_rejected_message_is_gone(broker, kind):
    broker.send([1])
    reader = Reader(broker.connect(kind))
    reader.read(1)
    reader.messages[0].reject()
    assert (broker.waiting(), broker.unacked()) == (0, 0)


def test_without_acknowledgement_nothing_stays(broker, kind):
    broker.send(range(3))
    assert Reader(broker.connect(kind), no_ack=True, prefetch=5).read(3) == [0, 1, 2]
    assert (broker.waiting(), broker.unacked()) == (0, 0)
    broker.send([4], "other")
    assert broker.connect(kind).default_channel.basic_get("other", no_ack=True).decode() == 4
    assert (broker.waiting("other"), broker.unacked()) == (0, 0)


def test_one_message_is_got(broker, kind):
    channel = broker.connect(kind).default_channel
    assert channel.basic_get("q") is None
    broker.send([1], priority=6)
    message = channel.basic_get("q")
    assert message.decode() == 1
    assert (broker.waiting(), broker.unacked()) == (0, 1)
    message.ack()
    assert broker.unacked() == 0


def test_closing_requeues_unacknowledged_messages(broker, kind):
    broker.send(range(5))
    connection = broker.connect(kind)
    reader = Reader(connection, prefetch=3)
    reader.read(3)
    connection.release()
    assert (broker.waiting(), broker.unacked()) == (5, 0)


def test_purge(broker, kind):
    broker.send(range(5), priority=3)
    assert broker.connect(kind).default_channel.queue_purge("q") == 5
    assert broker.waiting() == 0


def test_a_broadcast_reaches_all(broker, kind):
    def queue():
        return Queue(f"all-{uuid.uuid4().hex}", Exchange("celery.pidbox", type="fanout"), auto_delete=True)

    # Without a prefix: users of Redis may hear certain channels only.
    readers = [Reader(broker.connect(kind, global_keyprefix=""), [queue()], no_ack=True) for _ in range(2)]
    for reader in readers:
        reader.drain(0.3)
    exchange = Exchange("celery.pidbox", type="fanout")
    order = {"method": "nothing", "destination": ["nobody"]}
    producer = broker.connect(other(kind), global_keyprefix="").Producer(serializer="json")
    producer.publish(order, exchange=exchange, declare=[exchange])
    assert [reader.read(1) for reader in readers] == [[order], [order]]


# -- together


@pytest.mark.parametrize("restorer", KINDS)
def test_each_restores_what_the_other_has_lost(broker, kind, restorer):
    broker.send(range(3), priority=3)
    taker = Reader(broker.connect(kind), prefetch=3)
    assert len(taker.read(3)) == 3
    time.sleep(1.1)
    # The scan of stock kombu is at the first of ten times.
    reader = Reader(broker.connect(restorer, visibility_timeout=1), prefetch=3)
    assert sorted(reader.read(3)) == [0, 1, 2]
    assert all(message.headers["redelivered"] for message in reader.messages)
    assert broker.waiting() == 0
    for message in reader.messages:
        message.ack()
    assert broker.unacked() == 0
    for channel in (taker.channel, reader.channel):
        channel.do_restore = False


def test_both_share_a_queue(broker):
    readers = [Reader(broker.connect(kind), prefetch=5) for kind in KINDS]
    broker.send(range(100), kind="atomic")
    end = time.monotonic() + 10
    done = []
    while len(done) < 100 and time.monotonic() < end:
        for reader in readers:
            reader.drain(0.02)
            for message in reader.messages:
                done.append(message.decode())
                message.ack()
            reader.messages.clear()
    assert sorted(done) == list(range(100))
    assert (broker.waiting(), broker.unacked()) == (0, 0)


# -- what only ours does


def test_a_message_is_in_redis_at_every_instant(broker):
    """The connection breaks between question and answer, again and again."""
    broker.send(range(100))
    connection = broker.connect("atomic")
    reader = Reader(connection, prefetch=1000)
    for _ in range(30):
        connection.transport.cycle.on_poll_start()
        sock = reader.channel.client.connection._sock
        # Not TimeoutError, which is not a connection error and an OSError.
        time.sleep(random.uniform(0, 0.002))  # noqa: S311
        sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(connection.connection_errors) as trouble:
            _drain_for_ever(connection)
        assert not isinstance(trouble.value, TimeoutError)
        assert broker.waiting() + broker.unacked() == 100
    assert broker.unacked() > 0


def _drain_for_ever(connection):
    while True:
        connection.drain_events(timeout=1)


@pytest.mark.parametrize("kind", ["atomic", pytest.param("stock", id="stock, for comparison")])
def test_kill_9(broker, kind, record_property):
    """Consumers are killed under load; the ids in Redis and those that were done are all."""
    count, kills = 2000, 40
    broker.send(range(count))
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    done = b""
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            try:
                _consume_until_killed(broker, kind, write_end)
            finally:
                os._exit(1)
        # However busy this machine is, each has begun to consume.
        select.select([read_end], [], [], 20)
        time.sleep(random.uniform(0.0, 0.06))  # noqa: S311
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(read_end, 65536):
                done += part
    os.close(read_end)
    os.close(write_end)
    found = {int(number) for number in done.split()}
    texts = broker.redis.lrange(broker.key("q"), 0, -1)
    texts += [json.dumps(json.loads(entry)[0]) for entry in broker.redis.hvals(broker.key("unacked"))]
    found |= {int(json.loads(text)["headers"]["number"]) for text in texts}
    lost = count - len(found)
    print(f"{kind}: {lost} of {count} lost by {kills} kills; {len(done.split())} done")
    record_property("lost", lost)
    assert len(done.split()) > kills
    if kind == "atomic":
        assert lost == 0


def _consume_until_killed(broker, kind, done):
    def received(message):
        os.write(done, b"%d\n" % message.headers["number"])
        message.ack()

    reader = Reader(broker.connect(kind), prefetch=4, received=received)
    while True:
        reader.drain(10)


BAD = {
    "no JSON": b"\x80\x04 no JSON",
    "half a message": b'{"body": "W1tdLCB7fSwge31d", "properties": {"delivery_tag": "t1", ',
    "JSON, but half": b'{"properties": {"delivery_tag": "t2"}, "body": }',
    "an empty object": b"{}",
    "a number": b"17",
    "no base64": b'{"body": "W1tdL", "headers": {}, "properties": {"delivery_tag": "t3", "body_encoding": "base64"}}',
    "unknown encoding": b'{"body": "x", "headers": {}, "properties": {"delivery_tag": "t4", "body_encoding": "rot13"}}',
    "headers no mapping": b'{"body": "x", "headers": [1], "properties": {"delivery_tag": "t5"}}',
    "properties no mapping": b'{"body": "x", "headers": {}, "properties": "\\"delivery_tag\\": \\"t6\\""}',
    "no UTF-8": b'{"body": "\xff\xfe", "headers": {}, "properties": {"delivery_tag": "t7"}}',
}


@pytest.mark.parametrize("way", ["consume", "get", "no_ack"])
@pytest.mark.parametrize("bad", BAD)
def test_element_that_is_not_a_message_is_set_aside(broker, bad, way, caplog):
    broker.redis.lpush(broker.key("q"), BAD[bad])
    broker.send([1])
    connection = broker.connect("atomic")
    if way == "get":
        message = connection.default_channel.basic_get("q")
    else:
        reader = Reader(connection, prefetch=5, no_ack=way == "no_ack")
        assert reader.read(1) == [1]
        message = reader.messages[0]
    assert message.decode() == 1
    if way != "no_ack":
        message.ack()
    assert (broker.waiting(), broker.unacked()) == (0, 0)
    raw = redis.Redis.from_url(broker.url)
    [element] = raw.lrange(broker.key("celery.undecodable"), 0, -1)
    raw.close()
    queue, reason, text = element.split(b"\n", 2)
    assert (json.loads(queue), text) == ("q", BAD[bad])
    assert reason
    assert "An element of queue q" in caplog.text


def test_element_that_is_not_a_message_is_handed_over(broker):
    connection = broker.connect("atomic")
    reader = Reader(connection, prefetch=5)
    offered = []
    reader.drain(0.2)
    connection.transport.on_undecodable = lambda *element: offered.append(element) or len(offered) > 1
    broker.redis.lpush(broker.key("q"), b"bad one")
    reader.drain(0.3)
    assert offered == [(b"bad one", "q", "is not a Celery message: it has no delivery tag")]
    assert broker.redis.llen(broker.key("celery.undecodable")) == 1
    # It was not taken over. It is offered again with the next.
    broker.redis.lpush(broker.key("q"), b"bad two")
    reader.drain(0.3)
    assert [text for text, _, _ in offered] == [b"bad one", b"bad one", b"bad two"]
    assert broker.redis.llen(broker.key("celery.undecodable")) == 0


def test_an_entry_of_unacked_that_cannot_be_restored_is_kept(broker):
    broker.redis.hset(broker.key("unacked"), "bad", "no JSON")
    broker.redis.zadd(broker.key("unacked_index"), {"bad": 1})
    Reader(broker.connect("atomic", visibility_timeout=1)).drain(2.5)
    assert broker.unacked() == 0
    assert broker.redis.llen(broker.key("celery.undecodable")) == 1


def test_two_messages_with_one_tag_are_two(broker):
    """A message that a producer sent again after a timeout, or that a topic exchange put into two queues."""
    broker.send([1])
    broker.redis.lpush(broker.key("q"), *broker.redis.lrange(broker.key("q"), 0, -1))
    reader = Reader(broker.connect("atomic"), prefetch=5)
    assert reader.read(2) == [1, 1]
    assert broker.unacked() == 2
    reader.messages[0].ack()
    assert broker.unacked() == 1
    reader.messages[1].ack()
    assert broker.unacked() == 0


def test_a_header_named_like_the_tag_does_not_confuse(broker):
    broker.send([1], headers={"x": {"delivery_tag": "wrong"}})
    reader = Reader(broker.connect("atomic"))
    reader.read(1)
    [tag] = broker.redis.zrange(broker.key("unacked_index"), 0, -1)
    assert tag == reader.messages[0].delivery_tag != "wrong"


@pytest.mark.parametrize("restorer", KINDS)
def test_a_lost_binding_table_loses_no_message(broker, restorer):
    queue = Queue("q", Exchange("named", type="topic"), routing_key="some.#")
    reader = Reader(broker.connect("atomic"), [queue], prefetch=1)
    producer = broker.connect("atomic").Producer(serializer="json")
    producer.publish(1, exchange=queue.exchange, routing_key="some.key", declare=[queue])
    assert reader.read(1) == [1]
    broker.redis.delete(broker.key("_kombu.binding.named"))
    producer.publish(2, exchange=queue.exchange, routing_key="some.key")
    assert broker.waiting() == 1
    broker.redis.delete(broker.key("_kombu.binding.named"))
    # The unacknowledged message goes back to its queue without the table as well.
    broker.connect(restorer).default_channel.qos.restore_by_tag(reader.messages[0].delivery_tag)
    assert (broker.waiting(), broker.unacked()) == (2, 0)


def test_a_consumer_binds_again_and_says_so(broker, caplog):
    caplog.set_level("WARNING")  # workers in this process have raised it
    queue = Queue("q", Exchange("named", type="direct"), routing_key="key")
    reader = Reader(broker.connect("atomic"), [queue])
    broker.redis.delete(broker.key("_kombu.binding.named"))
    reader.channel._checked = float("-inf")
    reader.drain(0.3)
    assert broker.redis.scard(broker.key("_kombu.binding.named")) == 1
    assert "lost the binding of queue q to exchange named" in caplog.text
    broker.send([1])
    assert reader.read(1) == [1]


def test_queue_that_is_bound_is_declared_while_redis_is_full(broker):
    queue, other = (Queue(name, Exchange("named", type="direct"), routing_key="key") for name in ("q", "other"))
    queue.bind(broker.connect("atomic").default_channel).declare()
    before = broker.redis.config_get("maxmemory")["maxmemory"]
    broker.redis.config_set("maxmemory", 1)
    try:
        queue.bind(broker.connect("atomic").default_channel).declare()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            other.bind(broker.connect("atomic").default_channel).declare()
    finally:
        broker.redis.config_set("maxmemory", before)
    assert broker.redis.scard(broker.key("_kombu.binding.named")) == 1


def test_a_server_that_refuses_for_now_is_asked_again(broker, caplog):
    """Its disk is full, or here: its replicas are away."""
    broker.send([1])
    broker.redis.config_set("min-replicas-to-write", 1)
    try:
        reader = Reader(broker.connect("atomic"))
        assert reader.read(1, timeout=0.5) == []
    finally:
        broker.redis.config_set("min-replicas-to-write", 0)
    assert "refuses commands, so no messages are taken" in caplog.text
    assert reader.read(1, timeout=10) == [1]


def test_an_undeliverable_message_is_kept_and_a_late_answer_is_not(broker):
    producer = broker.connect("atomic").Producer(serializer="json")
    with pytest.warns(UserWarning, match="could not be delivered"):
        producer.publish(1, exchange=Exchange("nobody", type="direct"), routing_key="key")
    assert broker.waiting("celery.undeliverable") == 1
    producer.publish(1, exchange=Exchange("reply.celery.pidbox", type="direct"), routing_key="gone")
    assert broker.waiting("celery.undeliverable") == 1


# -- claims


NAME = re.compile(r"[0-9a-f-]{36}:[0-9a-f]{12}\.\d+\.\d+")


def test_each_take_gives_a_message_a_name_and_a_run_of_its_own(broker):
    broker.send([1])
    reader = Reader(broker.connect("atomic"))
    names, runs = [], []
    for count in (1, 2, 3):
        reader.read(count)
        [name] = broker.redis.hkeys(broker.key("unacked"))
        assert NAME.fullmatch(name)
        assert [name] == broker.redis.zrange(broker.key("unacked_index"), 0, -1)
        names.append(name)
        runs.append(reader.messages[-1].run)
        # What is kept there has its own tag, which is what stock kombu puts back.
        entry = json.loads(broker.redis.hget(broker.key("unacked"), name))
        assert entry[0]["properties"]["delivery_tag"] == name.partition(":")[0]
        reader.messages[-1].requeue()
    assert len(set(names)) == 3
    assert runs == sorted(set(runs))


def test_runs_of_one_take_grow_and_go_on_after_the_clock(broker):
    later = int((time.time() + 3600) * 1e6)
    broker.redis.set(broker.key("celery.run"), later)
    broker.send(range(5))
    reader = Reader(broker.connect("atomic"), prefetch=10)
    reader.read(5)
    runs = [message.run for message in reader.messages]
    assert runs[0] > later
    assert runs == sorted(set(runs))


@pytest.mark.parametrize("late", ["ack", "reject", "requeue", "renew", "close"])
def test_late_consumer_touches_nothing_that_another_has_taken(broker, late):
    broker.send([1, 2])
    first = Reader(broker.connect("atomic"), prefetch=5)
    first.read(2)
    names = broker.redis.hkeys(broker.key("unacked"))
    # As the restore of stock kombu does it.
    channel = broker.connect("stock").default_channel
    for name in names:
        channel.qos.restore_by_tag(name)
    second = Reader(broker.connect("atomic"), prefetch=5)
    second.read(2)
    before = broker.redis.hgetall(broker.key("unacked"))
    scores = broker.redis.zrange(broker.key("unacked_index"), 0, -1, withscores=True)
    assert len(before) == 2
    assert not before.keys() & set(names)
    if late == "renew":
        assert sorted(first.channel.renew(names)) == sorted(names)
    elif late == "close":
        first.connection.release()
    else:
        for message in first.messages:
            getattr(message, late)()
    assert broker.redis.hgetall(broker.key("unacked")) == before
    assert broker.redis.zrange(broker.key("unacked_index"), 0, -1, withscores=True) == scores
    assert broker.waiting() == 0


def test_late_acknowledgement_of_stock_kombu_touches_nothing_of_ours(broker):
    broker.send([1])
    late = Reader(broker.connect("stock"), prefetch=1)
    late.read(1)
    [tag] = broker.redis.hkeys(broker.key("unacked"))
    broker.connect("atomic").default_channel.qos.restore_by_tag(tag)
    ours = Reader(broker.connect("atomic"))
    ours.read(1)
    late.messages[0].ack()
    assert broker.unacked() == 1
    ours.messages[0].ack()
    assert broker.unacked() == 0


def test_renewal_finds_claims_whose_index_entry_is_lost(broker):
    broker.send([1, 2])
    reader = Reader(broker.connect("atomic"), prefetch=5)
    reader.read(2)
    names = broker.redis.hkeys(broker.key("unacked"))
    broker.redis.zrem(broker.key("unacked_index"), names[0])
    assert reader.channel.renew([*names, "gone:0123456789ab.1.0"]) == ["gone:0123456789ab.1.0"]
    assert broker.unacked() == 2


def test_messages_of_a_take_that_nobody_heard_of_come_back_at_once(broker, monkeypatch):
    def broken(*_args, **_options):
        raise redis.ConnectionError("cut")

    broker.send(range(3))
    connection = broker.connect("atomic")
    reader = Reader(connection, prefetch=10)
    reader.channel._batch = 8
    connection.transport.cycle.on_poll_start()
    _until(lambda: broker.unacked() == 3, 5)
    monkeypatch.setattr(reader.channel.client.connection, "read_response", broken)
    with pytest.raises(redis.ConnectionError, match="cut"):
        _drain_for_ever(connection)
    assert reader.messages == []
    reader.channel.do_restore = False
    again = Reader(broker.connect("atomic"), prefetch=10)
    assert sorted(again.read(3)) == [0, 1, 2]
    assert all(message.headers["redelivered"] for message in again.messages)


def test_claim_is_not_restored_when_it_was_seen_overdue_once(broker):
    """Nor when its score has changed in between: the clock has jumped, and its owner renews."""
    broker.send([1])
    Reader(broker.connect("atomic")).read(1)
    [name] = broker.redis.hkeys(broker.key("unacked"))
    other = Reader(broker.connect("atomic", visibility_timeout=600))
    for seconds in (900, 1000, 1100):
        broker.redis.zadd(broker.key("unacked_index"), {name: time.time() - seconds})
        other.channel.qos.next_look = float("-inf")
        other.drain(0.3)
    assert other.messages == []
    assert broker.redis.hkeys(broker.key("unacked")) == [name]


# -- what goes wrong in the middle of a script


@pytest.mark.parametrize("key", ["unacked", "unacked_index", "q"])
def test_key_of_the_wrong_type_loses_nothing_and_ends_nobody(broker, key, caplog, monkeypatch):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 0.5)
    broker.send([1], priority=3)
    broker.redis.set(broker.key(key), "not Celery's")
    reader = Reader(broker.connect("atomic"), prefetch=5)
    reader.drain(1)
    if key == "q":
        # The other lists of the queue are read.
        assert reader.read(1) == [1]
        reader.drain(1)
    else:
        assert broker.waiting_lists() == 1
    assert f"(key '{broker.key(key)}')" in caplog.text
    assert "Rename or delete that key" in caplog.text
    broker.redis.delete(broker.key(key))
    broker.send([2])
    assert sorted(reader.read(2)) == [1, 2]
    assert broker.unacked() == 2


def test_message_does_not_go_back_to_a_list_of_the_wrong_type(broker, caplog):
    broker.send([1])
    reader = Reader(broker.connect("atomic"))
    reader.read(1)
    broker.redis.set(broker.key("q"), "not Celery's")
    reader.channel.qos.restore_by_tag(reader.messages[0].delivery_tag)
    assert broker.unacked() == 1
    assert "cannot go back" in caplog.text
    broker.redis.delete(broker.key("q"))
    reader.channel.qos.restore_by_tag(reader.messages[0].delivery_tag)
    assert (broker.waiting(), broker.unacked()) == (1, 0)


@pytest.fixture
def limited(broker):
    """Return the URL of a user of Redis that may do everything but some commands."""
    name = f"limited-{uuid.uuid4().hex[:8]}"

    def made(*refused):
        broker.redis.execute_command("ACL", "SETUSER", name, "on", ">x", "~*", "&*", "+@all", *refused)
        host = broker.redis.connection_pool.connection_kwargs
        return f"redis://{name}:x@{host['host']}:{host['port']}/{host['db']}"

    yield made
    broker.redis.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("refused", ["zadd", "hset", "rpush", "set", "exists", "time"])
def test_missing_right_in_the_middle_of_a_take_loses_nothing(broker, limited, refused, caplog, monkeypatch):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 0.5)
    broker.send([1, 2])
    admin, broker.url = broker.url, limited("-" + refused, *(["-zadd"] if refused == "rpush" else []))
    reader = Reader(broker.connect("atomic"), prefetch=5)
    reader.drain(1)
    assert broker.waiting() + broker.redis.hlen(broker.key("unacked")) == 2
    assert broker.redis.hlen(broker.key("unacked")) == broker.redis.zcard(broker.key("unacked_index"))
    if not reader.messages:
        assert "the rights that the 'redis' role declares" in caplog.text
    limited("+@all")
    broker.url = admin
    assert sorted(reader.read(2)) == [1, 2]


@pytest.mark.parametrize("refused", ["hdel", "lpush", "hexists"])
def test_missing_right_in_the_middle_of_putting_back_loses_nothing(broker, limited, refused):
    broker.send([1])
    broker.url = limited("-" + refused)
    reader = Reader(broker.connect("atomic"))
    reader.read(1)
    name = reader.messages[0].delivery_tag
    with contextlib.suppress(redis.ResponseError):
        reader.channel.qos.restore_by_tag(name, leftmost=True)
    assert (broker.waiting(), broker.unacked()) == (0, 1)
    limited("+@all")
    assert reader.channel.qos.restore_by_tag(name)
    assert (broker.waiting(), broker.unacked()) == (1, 0)


# -- waiting


def _asked(broker):
    stats = broker.redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "rpop", "exists", "brpop"))


def test_message_wakes_one_of_many_consumers(broker):
    readers = [Reader(broker.connect("atomic"), prefetch=4) for _ in range(8)]

    def turn(seconds=0.02):
        for reader in readers:
            reader.drain(seconds)
            for message in reader.messages:
                done.append(message.decode())
                message.ack()
            reader.messages.clear()

    done: list[int] = []
    for _ in range(3):
        turn()
    before = _asked(broker)
    for number in range(10):
        broker.send([number])
        while len(done) <= number:
            turn()
    assert done == list(range(10))
    assert (_asked(broker) - before) / 10 < 20


@pytest.mark.parametrize("way", ["paused", "cut off"])
def test_another_consumer_takes_the_watch_when_the_watcher_leaves_a_message(broker, monkeypatch, way):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 60.0)
    readers = [Reader(broker.connect("atomic")) for _ in range(2)]
    for _ in range(3):
        for reader in readers:
            reader.drain(0.1)
    watcher, other = sorted(readers, key=lambda reader: not reader.channel._watching)
    assert (watcher.channel._watching, other.channel._watching) == (True, False)
    if way == "cut off":
        watcher.channel.client.connection._sock.shutdown(socket.SHUT_RDWR)
    # Nobody reads what the socket of the watcher says any more.
    broker.send([1])
    assert other.read(1, timeout=20) == [1]
    other.messages[0].ack()
    other.drain(0.5)
    assert other.channel._watching
    broker.send([2])
    assert other.read(2, timeout=20) == [1, 2]


def test_one_consumer_watches_after_a_paused_one_is_back(broker, monkeypatch):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 1.0)
    readers = [Reader(broker.connect("atomic")) for _ in range(2)]
    for reader in (*readers, *readers):
        reader.drain(0.1)
    watcher, other = sorted(readers, key=lambda reader: not reader.channel._watching)
    broker.send([1])
    assert other.read(1, timeout=20) == [1]
    end = time.monotonic() + 20
    while sum(reader.channel._watching for reader in readers) != 1 and time.monotonic() < end:
        for reader in readers:
            reader.drain(0.3)
    assert [reader.channel._watching for reader in (watcher, other)].count(True) == 1
    broker.send([2, 3])
    end = time.monotonic() + 20
    while sum(len(reader.messages) for reader in readers) < 3 and time.monotonic() < end:
        for reader in readers:
            reader.drain(0.3)
    assert sorted(message.decode() for reader in readers for message in reader.messages) == [1, 2, 3]


def test_consumer_that_has_lost_the_watch_does_not_hand_it_over(broker):
    reader = Reader(broker.connect("atomic"))
    reader.drain(0.5)
    assert reader.channel._watching
    watch, watcher = map(broker.key, reader.channel._watch(["q"]))
    broker.redis.set(watcher, "another")
    broker.send([1])
    assert reader.read(1) == [1]
    reader.drain(0.5)
    assert not reader.channel._watching
    assert not broker.redis.exists(watch)


def test_consumer_that_stops_hands_the_watch_over(broker, monkeypatch):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 30.0)
    readers = [Reader(broker.connect("atomic")) for _ in range(2)]
    for _ in range(3):
        for reader in readers:
            reader.drain(0.1)
    watcher, other = sorted(readers, key=lambda reader: not reader.channel._watching)
    watcher.consumer.cancel()
    other.drain(0.5)
    assert other.channel._watching
    broker.send([1])
    assert other.read(1, timeout=5) == [1]


def test_messages_of_other_databases_and_acknowledgements_wake_nobody_for_long(broker):
    reader = Reader(broker.connect("atomic"))
    reader.drain(0.3)
    before = _asked(broker)
    for _ in range(20):
        broker.redis.hset(broker.key("unacked"), "a", "b")
        broker.redis.hdel(broker.key("unacked"), "a")
        reader.drain(0.01)
    assert _asked(broker) - before <= 10


def _delays(broker, reader, count=10):
    delays = []
    producer = broker.connect("stock").Producer(serializer="json")
    for number in range(count):
        reader.messages.clear()
        reader.drain(0.05)
        sent = time.monotonic()
        producer.publish(number, routing_key="q", priority=number)
        while not reader.messages and time.monotonic() < sent + 5:
            reader.drain_one()
        delays.append(time.monotonic() - sent)
        reader.messages[0].ack()
    return sorted(delays)


def test_redis_tells_when_messages_arrive(broker, monkeypatch):
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 60.0)
    delays = _delays(broker, Reader(broker.connect("atomic"), ["p", "q"]))
    assert delays[5] < 0.1
    assert delays[-1] < 2


def test_a_server_that_does_not_tell_is_asked(broker, monkeypatch, caplog):
    caplog.set_level("WARNING")
    monkeypatch.setattr(transport, "_TRACK", ("CLIENT", "NO-SUCH-COMMAND"))
    delays = _delays(broker, Reader(broker.connect("atomic"), ["p", "q"]))
    assert delays[5] < 1
    assert caplog.text.count("cannot tell when messages arrive") == 1


def test_what_is_missed_is_found_by_looking(broker, monkeypatch):
    # The server believes that nobody wants to know.
    monkeypatch.setattr(transport, "_TRACK", ("CLIENT", "TRACKING", "OFF"))
    monkeypatch.setattr(transport, "_LOOK_SECONDS", 1.0)
    reader = Reader(broker.connect("atomic"))
    reader.drain(0.2)
    broker.send([1])
    assert reader.read(1, timeout=5) == [1]


def test_an_idle_consumer_asks_little(broker):
    reader = Reader(broker.connect("atomic"), ["p", "q"])
    reader.drain(0.5)
    asked = []
    original = reader.channel.client.connection.send_packed_command
    reader.channel.client.connection.send_packed_command = lambda *a, **k: asked.append(a[0]) or original(*a, **k)
    reader.drain(3)
    assert len(asked) <= 2


def test_a_queue_that_is_added_is_read_at_once(broker):
    reader = Reader(broker.connect("atomic"))
    reader.drain(0.2)
    reader.consumer.add_queue(Queue("r"))
    reader.consumer.consume()
    broker.send([1], "r")
    assert reader.read(1, timeout=1) == [1]
    reader.consumer.cancel_by_queue("r")
    broker.send([2], "r")
    broker.send([3])
    assert reader.read(2) == [1, 3]


def test_a_script_that_redis_has_forgotten(broker):
    reader = Reader(broker.connect("atomic"))
    broker.send([1])
    reader.read(1)
    broker.redis.script_flush()
    broker.send([2])
    assert reader.read(2) == [1, 2]
    reader.messages[1].requeue()
    assert reader.read(3) == [1, 2, 2]


# -- workers


@pytest.fixture
def start(broker, tmp_path):
    """Start workers of an application that notes in a file what was done."""
    file = tmp_path / "done"
    file.touch()
    # No prefix: remote control needs channels that users of Redis may hear.
    names = {name: broker.key(name) for name in ("unacked_key", "unacked_index_key", "undecodable_key")}
    options = {"visibility_timeout": 3, "unacked_restore_interval": 1, **names}
    environment = {**os.environ, "TRANSPORT_TEST_FILE": str(file), "TRANSPORT_TEST_OPTIONS": json.dumps(options)}
    workers = []

    def started(kind="atomic", pool="prefork"):
        log = tmp_path / f"worker-{len(workers)}.log"
        with log.open("w") as output:
            worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "transport_tasks", "worker", "-P", pool, "-c", "2"),
                    *("-Q", broker.key("q"), "-n", f"{uuid.uuid4().hex}@test", "-l", "INFO"),
                    *("--without-mingle", "--without-gossip"),
                ],
                cwd=Path(__file__).parent,
                env={**environment, "TRANSPORT_TEST_KIND": kind},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker.log = log
        workers.append(worker)
        _until(lambda: " ready." in log.read_text(), 40, log.read_text)
        return worker

    started.done = lambda: file.read_text().split()
    started.names = names
    yield started
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _until(condition, seconds, explain=str):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.05)


@pytest.fixture
def note(broker):
    """Send a task, with stock kombu."""
    from transport_tasks import app

    with broker.connect("stock", global_keyprefix="") as connection:
        yield lambda *args, **options: app.send_task(
            "transport.note", args, connection=connection, queue=broker.key("q"), **options
        )


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker(broker, start, note, pool):
    worker = start(pool=pool)
    for number in range(40):
        note(number, priority=number % 10)
    note("later", countdown=1)
    broker.redis.lpush(broker.key("q"), "no message")
    _until(lambda: "later" in start.done(), 20, worker.log.read_text)
    assert sorted(start.done()) == sorted([*map(str, range(40)), "later"])
    _until(lambda: not broker.redis.hlen(start.names["unacked_key"]), 5)
    assert broker.redis.llen(start.names["undecodable_key"]) == 1
    from transport_tasks import app

    with broker.connect("stock", global_keyprefix="") as connection:
        name = re.search(r"celery@\S+|\w+@test", worker.log.read_text()).group()
        assert app.control.ping([name], timeout=5, connection=connection) == [{name: {"ok": "pong"}}]
    assert worker.poll() is None


@pytest.mark.parametrize("restorer", KINDS)
def test_the_tasks_of_a_lost_worker_run_soon(broker, start, note, restorer):
    worker = start()
    for number in range(2):
        note(number, 60)
    _until(lambda: broker.redis.hlen(start.names["unacked_key"]) == 2, 20, worker.log.read_text)
    os.killpg(worker.pid, signal.SIGKILL)
    lost = time.monotonic()
    if restorer == "stock":
        # What it is about is that stock kombu reads our entries; its sweep is slow by default.
        tags = broker.redis.zrange(start.names["unacked_index_key"], 0, -1)
        broker.redis.zadd(start.names["unacked_index_key"], dict.fromkeys(tags, 1))
    second = start(restorer)
    _until(lambda: second.log.read_text().count("received") == 2, 15, second.log.read_text)
    print(f"restored after {time.monotonic() - lost:.1f} s, visibility timeout 3 s, start of the worker included")

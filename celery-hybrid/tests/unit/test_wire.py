"""Reading frames: whatever way they arrive in, deliveries and methods come out right."""

from __future__ import annotations

import contextlib
import random
import struct
import time

import amqp
import pytest

from celery_hybrid.archive.wire import Connection, StreamMessage, Wire
from celery_hybrid.rabbitmq.records import GROUP, RESULT, Record

RECORDS = [
    Record("a" * 36, RESULT, status="SUCCESS", body=b'{"x": 1}', content_type="application/json", offset=7),
    Record("b", RESULT, status="STARTED", body=b"", compression="gzip", offset=2**40),
    Record("c", GROUP, subject=GROUP, body=b"\xce" * 300_000, offset=8),
    Record.tombstone("é" * 20, GROUP),
    Record("", "seed", subject="seed"),
    Record("long" * 2000, RESULT, status="FAILURE", body=b"{}"),
]


def header_of(message, **headers):
    message.properties["application_headers"] = {**message.properties.get("application_headers", {}), **headers}
    return struct.pack(">HHQ", 60, 0, len(message.body)) + message._serialize_properties()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_glance_sees_what_the_record_says(record):
    message = record.to_message("client")
    more = {"odd": [1, {"x": 2.5, "y": None}], "flag": True, "x-stream-offset": 2**40}
    delivery = StreamMessage(3, header_of(message, **more), record.body)
    whole = delivery.record()
    assert whole == Record.from_message(_with_offset(message, 2**40))
    assert (delivery.id, delivery.kind, delivery.subject) == (whole.id, whole.kind, whole.subject)
    assert (delivery.status, delivery.timestamp, delivery.offset) == (whole.status, whole.timestamp, 2**40)
    assert (whole.id, whole.body) == (record.id, record.body)


def _with_offset(message, offset):
    message.properties["application_headers"]["x-stream-offset"] = offset
    return message


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"application_headers": {"x-stream-offset": 5}},
        {"application_headers": {"x-stream-offset": "five", "status": 1}},
        {"type": "result", "priority": 3, "reply_to": "x", "expiration": "9", "user_id": "u", "app_id": "a"},
        {"correlation_id": "x", "type": "forget", "application_headers": {"forgets": "group"}},
    ],
)
def test_foreign_messages_do_no_harm(properties):
    delivery = StreamMessage(1, header_of(amqp.Message("body", **properties)), b"body")
    whole = delivery.record()
    assert (delivery.id, delivery.kind, delivery.status) == (whole.id, whole.kind, whole.status)
    assert (delivery.offset, delivery.subject) == (whole.offset, whole.subject)


class Socket:
    """Yields data in pieces of given sizes, then times out."""

    def __init__(self, data, sizes):
        self.data = data
        self.sizes = sizes
        self.reads = 0

    def recv(self, size):
        self.reads += 1
        if not self.data:
            raise TimeoutError
        count = min(size, next(self.sizes))
        piece, self.data = self.data[:count], self.data[count:]
        return piece

    def gettimeout(self):
        return 3.0

    def settimeout(self, value):
        pass


def frame(kind, channel, payload):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery_frames(channel, tag, number, record, frame_max=131_072):
    def short(text):
        return bytes([len(text)]) + text.encode()

    method = b"\0\x3c\0\x3c" + short(tag) + struct.pack(">QB", number, 0) + short("") + short("key")
    body = [record.body[at : at + frame_max - 8] for at in range(0, len(record.body), frame_max - 8)]
    header = header_of(record.to_message(), **{"x-stream-offset": number})
    return [frame(1, channel, method), frame(2, channel, header), *(frame(3, channel, part) for part in body)]


class Harness:
    """A wire over a socket that has data already."""

    def __init__(self, data, sizes):
        self.connection = Connection()
        self.connection.transport = amqp.transport.TCPTransport("nowhere")
        self.connection.transport.sock = Socket(data, sizes)
        self.connection.on_inbound_frame = amqp.method_framing.frame_handler(
            self.connection, self.connection.on_inbound_method
        )
        self.channel = amqp.Channel(self.connection, 1)
        self.other = amqp.Channel(self.connection, 2)
        self.wire = Wire(self.connection)
        self.arrived = self.wire.collect(self.channel, "reader-1")

    def drain(self):
        with contextlib.suppress(TimeoutError):
            while True:
                self.wire.wait(1)


@pytest.mark.parametrize("seed", range(10))
def test_deliveries_in_pieces_of_any_size(seed):
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    largest = random_.choice([2, 50, 5000, 200_000])
    records = [record for record in RECORDS if len(record.body) < 1000 * largest]
    expected = [random_.choice(records) for _ in range(30)]
    data = b""
    for number, record in enumerate(expected):
        data += b"".join(delivery_frames(1, "reader-1", number, record))
        if random_.random() < 0.3:
            data += frame(8, 0, b"")
    harness = Harness(data, iter(lambda: random_.randint(1, largest), None))
    harness.drain()
    assert [delivery.tag for delivery in harness.arrived] == list(range(30))
    assert [delivery.offset for delivery in harness.arrived] == list(range(30))
    assert [delivery.record().body for delivery in harness.arrived] == [record.body for record in expected]


def test_a_method_in_between_reaches_py_amqp():
    qos_ok = frame(1, 1, b"\0\x3c\0\x0b")
    data = b"".join(delivery_frames(1, "reader-1", 1, RECORDS[0])) + qos_ok
    data += b"".join(delivery_frames(1, "reader-1", 2, RECORDS[0]))
    harness = Harness(data, iter(lambda: 100_000, None))
    harness.channel.wait(amqp.spec.Basic.QosOk)
    assert [delivery.tag for delivery in harness.arrived] == [1]
    harness.drain()
    assert [delivery.tag for delivery in harness.arrived] == [1, 2]


def test_frames_of_two_channels_that_alternate():
    one = delivery_frames(1, "reader-1", 1, RECORDS[2])
    two = delivery_frames(2, "reader-2", 9, RECORDS[0])
    mixed = [one[0], two[0], one[1], one[2], two[1], two[2], *one[3:]]
    harness = Harness(b"".join(mixed), iter(lambda: 70_000, None))
    others = harness.wire.collect(harness.other, "reader-2")
    harness.drain()
    assert [delivery.record().body for delivery in harness.arrived] == [RECORDS[2].body]
    assert [delivery.record().body for delivery in others] == [RECORDS[0].body]
    assert harness.arrived[0].offset == 1


def test_a_large_message_takes_few_reads():
    record = Record("x", RESULT, body=bytes(8_000_000))
    harness = Harness(b"".join(delivery_frames(1, "reader-1", 1, record)), iter(lambda: 65_536, None))
    harness.drain()
    assert harness.connection.transport.sock.reads < 8_000_000 / 65_536 + 10


def test_a_frame_that_is_cut_wrong_is_an_error():
    harness = Harness(frame(1, 1, b"\0\x3c\0\x0b")[:-1] + b"\0", iter(lambda: 1000, None))
    with pytest.raises(amqp.exceptions.UnexpectedFrame):
        harness.wire.wait(1)


def test_the_deadline_bounds_every_read():
    connection = Connection()
    connection.transport = amqp.transport.TCPTransport("nowhere")
    connection.transport.sock = Socket(b"", iter([]))
    assert connection.patience(None) is None
    connection.deadline = time.monotonic() + 2
    assert 1.9 < connection.patience(None) <= 2
    assert connection.patience(0.5) == 0.5
    connection.deadline += 100
    assert connection.patience(None) == 3.0
    connection.deadline = time.monotonic() - 1
    with pytest.raises(TimeoutError):
        connection.patience(5)

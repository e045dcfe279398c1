"""A fast way to read many messages.

py-amqp reads each frame with three system calls and decodes every property of a message. A reader that looks for one
record among a hundred thousand needs neither: :class:`Wire` reads ahead, hands deliveries over as they are, and
leaves all else to py-amqp.
"""

from __future__ import annotations

import struct
from typing import Any

import amqp

from celery_hybrid.names import ID_HEADER
from celery_hybrid.rabbitmq.connection import Connection
from celery_hybrid.rabbitmq.records import FORGET, FORGETS_HEADER, RESULT, Record

_READ_AHEAD = 256 * 1024

# AMQP 0-9-1, section 4.2: type, channel and size of a frame; what begins the payload of basic.deliver; class, weight
# and size of the body, which begin the header of a content.
_FRAME = struct.Struct(">BHI")
_DELIVER = b"\0\x3c\0\x3c"
_CONTENT = struct.Struct(">HHQ")
_LONG = struct.Struct(">I")
_LONGLONG = struct.Struct(">Q")
_OFFSET = struct.Struct(">q")

# Sizes of the values in a table of headers, by their type; None for those that begin with their length.
_SIZES: dict[int, int | None] = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"sUu", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"V", 0),
    **dict.fromkeys(b"SxAF", None),
}


class StreamMessage:
    """A message from a stream, decoded as far as everybody needs it.

    A field that is missing or odd is empty, as in :meth:`Record.from_message`.

    Attributes:
        tag: delivery tag.
        offset: place in the stream, -1 when it is not told.
        id: of the task or group.
        kind, subject, status, timestamp: see :class:`Record`.
        size: of properties and body, in bytes.
    """

    __slots__ = ("_body", "_header", "id", "kind", "offset", "status", "subject", "tag", "timestamp")

    def __init__(self, tag: int, header: bytes, body: bytes) -> None:
        self.tag = tag
        self._header = header
        self._body = body
        try:
            self._glance(header)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError):
            # Nothing that this package publishes.
            self._take(self.record())

    @property
    def key(self) -> tuple[str, str]:
        """What the records of one outcome have in common."""
        return (self.subject, self.id)

    @property
    def size(self) -> int:
        """Bytes of properties and body."""
        return len(self._header) + len(self._body)

    @property
    def fingerprint(self) -> int:
        """What tells it from another record that was given the same offset; this process's own."""
        return hash((self.offset, self.kind, self.subject, self.id, self.status, self.timestamp))

    def record(self) -> Record:
        """Return the whole record."""
        message = amqp.Message()
        message.inbound_header(self._header)
        message.body = self._body
        return Record.from_message(message)

    @classmethod
    def of(cls, message: amqp.Message) -> StreamMessage:
        """Return what py-amqp has decoded already."""
        self = cls.__new__(cls)
        self.tag = message.delivery_tag
        self._body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        self._header = _CONTENT.pack(60, 0, len(self._body)) + message._serialize_properties()
        self._take(Record.from_message(message))
        return self

    def _take(self, record: Record) -> None:
        self.offset, self.id, self.kind = record.offset, record.id, record.kind
        self.subject, self.status, self.timestamp = record.subject, record.status, record.timestamp

    def _glance(self, header: bytes) -> None:
        """Read the properties that matter; section 4.2.6.1."""
        flags = header[12] << 8 | header[13]
        at = 14
        self.offset, self.timestamp = -1, 0
        self.id = self.kind = self.status = forgets = whole_id = ""
        if flags & 0x8000:  # content_type
            at += 1 + header[at]
        if flags & 0x4000:  # content_encoding
            at += 1 + header[at]
        if flags & 0x2000:  # headers
            end = at + 4 + _LONG.unpack_from(header, at)[0]
            at += 4
            while at < end:
                key = header[at + 1 : (at := at + 1 + header[at])]
                kind = header[at]
                size = _SIZES[kind]
                at += 1
                if size is None:
                    size = _LONG.unpack_from(header, at)[0]
                    at += 4
                if kind == 0x53:  # S: a string
                    if key == b"status":
                        self.status = header[at : at + size].decode()
                    elif key == FORGETS_HEADER.encode():
                        forgets = header[at : at + size].decode()
                    elif key == ID_HEADER.encode():
                        whole_id = header[at : at + size].decode()
                elif key == b"x-stream-offset":
                    if size != _OFFSET.size:
                        raise KeyError(key)
                    self.offset = _OFFSET.unpack_from(header, at)[0]
                at += size
        if flags & 0x1000:  # delivery_mode
            at += 1
        if flags & 0x0800:  # priority
            at += 1
        if flags & 0x0400:  # correlation_id
            self.id = header[at + 1 : (at := at + 1 + header[at])].decode()
        for flag in (0x0200, 0x0100, 0x0080):  # reply_to, expiration, message_id
            if flags & flag:
                at += 1 + header[at]
        if flags & 0x0040:
            self.timestamp = _LONGLONG.unpack_from(header, at)[0]
            at += 8
        if flags & 0x0020:
            self.kind = header[at + 1 : at + 1 + header[at]].decode()
        self.id = whole_id or self.id
        self.subject = (forgets or RESULT) if self.kind == FORGET else self.kind


class Wire:
    """Reads ahead on one connection, and collects the deliveries of its own consumers.

    Args:
        connection: which reads through this from now on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._data = bytes(self._transport._read_buffer)
        self._at = 0
        self._needed = 0
        self._taken = 0
        self._consumers: dict[bytes, list[StreamMessage]] = {}
        self._acknowledged: dict[int, int] = {}
        self._transport.read_frame = self._read_frame

    def collect(self, channel: amqp.Channel, tag: str) -> list[StreamMessage]:
        """Return a list that the deliveries of a consumer will be added to."""
        arrived = self._consumers[tag.encode()] = []

        def assembled(message: amqp.Message) -> None:
            arrived.append(StreamMessage.of(message))

        # For what py-amqp has put together; and it knows the tag until RabbitMQ has confirmed its end.
        channel.callbacks[tag] = assembled
        return arrived

    def acknowledge(self, channel: amqp.Channel, tag: int) -> None:
        """Acknowledge all deliveries of a channel up to one, unless that was done for another of its consumers."""
        if tag > self._acknowledged.get(channel.channel_id, 0):
            self._acknowledged[channel.channel_id] = tag
            channel.basic_ack(tag, multiple=True)

    def close(self, channel: amqp.Channel) -> None:
        """Close a channel; its number, and its delivery tags, will be used again."""
        self._acknowledged.pop(channel.channel_id, None)
        channel.close()

    def forget(self, tag: str) -> None:
        """Collect no more of a consumer that has ended."""
        self._consumers.pop(tag.encode(), None)

    def wait(self, timeout: float | None = None) -> None:
        """Take in what has come; wait when nothing has.

        Args:
            timeout: seconds; None for that of the connection.

        Raises:
            TimeoutError: nothing came.
        """
        before = self._taken
        while True:
            frame = self._next()
            if frame is not None:
                self._connection.on_inbound_frame(frame)
                return
            if self._taken != before:
                return
            with self._transport.having_timeout(self._connection.patience(timeout)):
                self._receive()

    def _read_frame(self, *_: Any) -> tuple[int, int, bytes]:
        """Return the next frame that belongs to no delivery of ours; what py-amqp calls."""
        while True:
            frame = self._next()
            if frame is not None:
                return frame
            self._receive()

    def _receive(self) -> None:
        """Wait for data, and for all of a large message."""
        parts = [self._data[self._at :]]
        have, needed = len(parts[0]), self._needed
        try:
            while True:
                try:
                    part = self._transport.sock.recv(max(_READ_AHEAD, min(needed - have, 16 * _READ_AHEAD)))
                except TimeoutError:
                    raise
                except OSError:
                    self._transport.connected = False
                    raise
                if not part:
                    self._transport.connected = False
                    raise OSError("the server has closed the connection")
                self._connection.bytes_recv += 1
                parts.append(part)
                have += len(part)
                if have >= needed:
                    return
        finally:
            self._data, self._at = b"".join(parts), 0

    def _next(self) -> tuple[int, int, bytes] | None:
        """Take in deliveries up to the next other frame; return that, or None when it has not come."""
        data, at = self._data, self._at
        length = len(data)
        while True:
            self._at = at
            self._needed = 7
            if length - at < 7:
                return None
            kind, channel, size = _FRAME.unpack_from(data, at)
            end = at + size + 8
            if length < end:
                self._needed = end - at
                return None
            if data[end - 1] != 0xCE:
                raise amqp.exceptions.UnexpectedFrame("a frame does not end where it should")
            arrived = None
            if kind == 1 and data.startswith(_DELIVER, at + 7):
                tag_end = at + 12 + data[at + 11]
                arrived = self._consumers.get(data[at + 12 : tag_end])
            if arrived is None:
                self._at = end
                return kind, channel, data[at + 7 : end - 1]
            content = self._content(channel, end)
            if content is None:
                if self._needed:
                    self._needed -= at
                    return None
                # Its frames lie between those of another channel: py-amqp puts them together.
                self._at = end
                return kind, channel, data[at + 7 : end - 1]
            header, body, end = content
            arrived.append(StreamMessage(_LONGLONG.unpack_from(data, tag_end)[0], header, body))
            self._taken += 1
            at = end

    def _content(self, channel: int, at: int) -> tuple[bytes, bytes, int] | None:
        """Return header and body that follow a delivery, and where they end.

        Returns:
            None when they are not all there: then ``_needed`` says up to where to read on, or is 0 when something
            else lies in between.
        """
        data, parts, header = self._data, [], b""
        missing = -1  # of the body; not told yet
        while missing:
            if len(data) < at + 7:
                self._needed = at + 7 + max(0, missing)
                return None
            kind, number, size = _FRAME.unpack_from(data, at)
            if number != channel or kind != (3 if header else 2):
                self._needed = 0
                return None
            end = at + size + 8
            if len(data) < end:
                self._needed = max(end, at + 8 + missing)
                return None
            payload = data[at + 7 : end - 1]
            if header:
                parts.append(payload)
                missing = max(0, missing - size)
            else:
                header = payload
                missing = _LONGLONG.unpack_from(payload, 4)[0]
            at = end
        return header, parts[0] if len(parts) == 1 else b"".join(parts), at

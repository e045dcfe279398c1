"""Consumers of one stream, and blocks of it that several of them read at the same time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import amqp

from celery_hybrid.archive.index import Block
from celery_hybrid.archive.wire import StreamMessage, Wire

#: Records in a block.
BLOCK = 256

_serial = itertools.count(1)


class Reader:
    """One consumer on a stream.

    Args:
        wire: of the connection.
        channel: its channel.
        stream: name of the stream.
        start: ``x-stream-offset``.
        only: values of ``x-stream-filter``; empty for no filter.
    """

    def __init__(self, wire: Wire, channel: amqp.Channel, stream: str, start: Any, only: Collection[str] = ()) -> None:
        self._wire = wire
        self._channel = channel
        arguments: dict[str, Any] = {"x-stream-offset": start}
        if only:
            arguments["x-stream-filter"] = list(only)
        # RabbitMQ 3.10 can deliver before it says consume-ok, when an earlier consumer of the channel on this stream
        # has left an event behind. So the tag is chosen here, and consume-ok is not waited for.
        self._tag = f"reader-{next(_serial)}"
        self._arrived = wire.collect(channel, self._tag)
        self._unacknowledged = 0
        self._ending = False
        callback = channel.callbacks[self._tag]
        channel.basic_consume(stream, self._tag, nowait=True, callback=callback, arguments=arguments)

    def wait(self, deadline: float, count: int = 1, end: int | None = None) -> None:
        """Wait until something has arrived.

        Args:
            deadline: by the monotonic clock.
            count: how much is enough.
            end: the record with this offset is enough as well.
        """
        arrived = self._arrived
        while len(arrived) < count and not (end is not None and arrived and arrived[-1].offset >= end):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            try:
                self._wire.wait(remaining)
            except TimeoutError:
                return

    @property
    def waiting(self) -> bool:
        """Whether something has arrived that was not taken."""
        return bool(self._arrived)

    @property
    def ended(self) -> bool:
        """Whether RabbitMQ has said that nothing more will come."""
        return self._ending and self._tag not in self._channel.callbacks

    def peek(self) -> list[StreamMessage]:
        """Return what has arrived, and do not let RabbitMQ send more."""
        # The list is the wire's, so it is emptied in place.
        deliveries = self._arrived[:]
        if deliveries:
            del self._arrived[: len(deliveries)]
            self._unacknowledged = deliveries[-1].tag
        return deliveries

    def acknowledge(self) -> None:
        """Let RabbitMQ send more."""
        # Also when this is the end: what is not acknowledged for 30 minutes closes the channel.
        if self._unacknowledged:
            self._wire.acknowledge(self._channel, self._unacknowledged)
            self._unacknowledged = 0

    def take(self) -> list[StreamMessage]:
        """Return what has arrived, and let RabbitMQ send more."""
        deliveries = self.peek()
        self.acknowledge()
        return deliveries

    def cancel(self) -> None:
        """Begin to end the consumer."""
        if not self._ending:
            self._ending = True
            self._channel.send_method(amqp.spec.Basic.Cancel, "sb", (self._tag, False))

    def stop(self) -> list[StreamMessage]:
        """End the consumer; return what arrived until RabbitMQ said so."""
        self.cancel()
        while not self.ended:
            self._wire.wait()
        deliveries = self.take()
        self._wire.forget(self._tag)
        return deliveries


class BlockReader:
    """A channel that reads one block after the other.

    Args:
        wire: of the connection.
        channel: for this alone.
    """

    def __init__(self, wire: Wire, channel: amqp.Channel) -> None:
        self._wire = wire
        self.channel = channel
        self._prefetch = 0
        self._reader: Reader | None = None
        self._received = 0
        self._block: Block | None = None

    def reads(self, block: Block) -> bool:
        """Whether it is still reading this block."""
        return self._block is block and not self.free

    @property
    def free(self) -> bool:
        """Whether it may begin another block."""
        return self._reader is None

    def begin(self, stream: str, block: Block, prefetch: int) -> None:
        """Read a block."""
        if prefetch != self._prefetch:
            self.channel.basic_qos(0, prefetch, False)
            self._prefetch = prefetch
        self._block = block
        self._received = 0
        self._reader = Reader(self._wire, self.channel, stream, block.begin)

    def advance(self) -> list[StreamMessage]:
        """Return what has come of the block, and of what lies behind it."""
        reader = self._reader
        block = self._block
        if reader is None or block is None:
            return []
        if reader.ended:
            self._reader = None
            return reader.stop()
        if not reader.waiting:
            return []
        deliveries = reader.peek()
        self._received += len(deliveries)
        left = block.end - 1 - deliveries[-1].offset
        if left <= 0:
            reader.cancel()
        elif self._received + left > self._prefetch and self._received >= self._prefetch // 2:
            # The block is longer, or it came with others. Otherwise there is nothing to acknowledge in between, so
            # RabbitMQ reads nothing in vain.
            reader.acknowledge()
            self._received = 0
        return deliveries


class Blocks:
    """Cuts stretches of a stream into blocks, one after the other.

    Args:
        stretches: first offset, and the offset behind the last.
        pause: whether to begin no further one.
    """

    def __init__(self, stretches: Iterable[tuple[int, int]], pause: Callable[[], bool] | None = None) -> None:
        self._stretches = list(stretches)
        self._pause = pause

    @property
    def count(self) -> int:
        """How many are left, when each is read on its own."""
        return sum(-(-(end - begin) // BLOCK) for begin, end in self._stretches)

    def next(self) -> Block | None:
        """Return the next block, None behind the last."""
        while self._stretches:
            begin, end = self._stretches[0]
            if begin < end:
                if self._pause is not None and self._pause():
                    self._stretches.clear()
                    return None
                block = Block(begin, min(BLOCK, end - begin))
                self._stretches[0] = (block.end, end)
                return block
            del self._stretches[0]
        return None

    def extend(self, block: Block, end: int) -> None:
        """Let a block reach further, if what is behind it is wanted and no reader has begun it."""
        if self._stretches and self._stretches[0][0] == block.end < end:
            block.grow(min(end, self._stretches[0][1]))
            self._stretches[0] = (block.end, self._stretches[0][1])

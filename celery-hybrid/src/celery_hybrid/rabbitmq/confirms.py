"""Publisher confirms, each matched with its message.

py-amqp's own ``basic_publish_confirm`` takes any confirm for that of the message it waits for, so it can neither leave
a message unconfirmed for a while nor go on after a timeout. RabbitMQ numbers the messages of a channel from 1 on and
confirms them in any order (https://www.rabbitmq.com/docs/confirms#publisher-confirms).
"""

from __future__ import annotations

import time
from typing import Any

import amqp


class ConfirmedChannel:
    """A channel on which every message is confirmed.

    Args:
        connection: one that was not told to ``confirm_publish``.
    """

    def __init__(self, connection: amqp.Connection) -> None:
        self._connection = connection
        self._channel = connection.channel()
        self._channel.confirm_select()
        self._last = 0
        self._open: set[int] = set()
        self._awaited: set[int] = set()
        self._nacked: set[int] = set()
        self._returned: list[str] = []
        self._channel.events["basic_ack"].add(self._acked)
        self._channel.events["basic_nack"].add(self._not_acked)
        # Without such a handler py-amqp raises out of whatever is waited for.
        self._channel.events["basic_return"].add(self._came_back)

    @property
    def unconfirmed(self) -> int:
        """Number of messages whose confirm is still to come."""
        return len(self._open)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def publish(self, message: amqp.Message, exchange: str, routing_key: str, awaited: bool = True) -> int:
        """Send a message and return its number, without waiting.

        Args:
            message: the message.
            exchange: where to.
            routing_key: where to.
            awaited: whether :meth:`wait` will be called for it; else a nack of it is not remembered.
        """
        self._channel.basic_publish(message, exchange, routing_key, mandatory=True)
        self._last += 1
        self._open.add(self._last)
        if awaited:
            self._awaited.add(self._last)
        return self._last

    def wait(self, number: int, timeout: float) -> bool:
        """Wait until a message is confirmed; return whether some queue took it.

        Args:
            number: of the message.
            timeout: seconds.

        Raises:
            TimeoutError: no confirm came in time.
            amqp.exceptions.MessageNacked: RabbitMQ did not keep it.
        """
        deadline = time.monotonic() + timeout
        while number in self._open:
            # py-amqp takes a timeout of 0 for none at all.
            self._connection.drain_events(timeout=max(0.001, deadline - time.monotonic()))
            if number in self._open and time.monotonic() >= deadline:
                raise TimeoutError
        self._awaited.discard(number)
        if number in self._nacked:
            self._nacked.discard(number)
            raise amqp.exceptions.MessageNacked
        # A message that no queue took comes back before it is confirmed.
        returned = bool(self._returned)
        self._returned.clear()
        return not returned

    def _acked(self, number: int, multiple: bool) -> None:
        if multiple:
            self._open = {each for each in self._open if each > number}
        else:
            self._open.discard(number)

    def _not_acked(self, number: int, multiple: bool) -> None:
        nacked = {each for each in self._open if each <= number} if multiple else {number}
        self._nacked |= nacked & self._awaited
        self._acked(number, multiple)

    def _came_back(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:  # noqa: ARG002
        self._returned.append(routing_key)

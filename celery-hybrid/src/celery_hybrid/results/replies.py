"""The push path: one reply queue and one thread for each client process, which wake whoever waits."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import amqp

from celery_hybrid.names import RESULTS_EXCHANGE, reply_queue
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.receiver import Receiver
from celery_hybrid.rabbitmq.records import RESULT, Record, outcome

REPLIES = "replies"

#: Ids of tasks sent from here whose results were not pushed yet; beyond that the oldest count as unknown.
SENT_LIMIT = 20_000


class Waiter(Protocol):
    """Somebody who waits for results."""

    def wants(self, task_id: str) -> bool:
        """Tell whether it waits for this task."""

    def deliver(self, record: Record) -> None:
        """Take a record; called by the receiving thread, must not block."""


class Mailbox:
    """Brings records to those who wait for them, and keeps those that nobody waits for yet.

    Args:
        limit: bytes to keep; the oldest are dropped beyond it, the archive has them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiters: tuple[weakref.ref[Waiter], ...] = ()
        self._early: OrderedDict[str, Record] = OrderedDict()
        self._size = 0
        self._sent: OrderedDict[str, float] = OrderedDict()
        self._sure_since = 0.0

    def join(self, waiter: Waiter) -> None:
        """Add somebody who may wait; it is forgotten when nobody else refers to it."""
        with self._lock:
            living = [reference for reference in self._waiters if reference() is not None]
            self._waiters = (*living, weakref.ref(waiter))

    def sent(self, task_id: str) -> None:
        """Note that a task was sent from here while the reply queue was there, so its result will be pushed."""
        with self._lock:
            self._sent[task_id] = time.time()
            if len(self._sent) > SENT_LIMIT:
                self._sent.popitem(last=False)

    def expects(self, task_id: str) -> bool:
        """Tell whether the result of a task will be pushed, or was."""
        return self._sent.get(task_id, -1.0) >= self._sure_since or task_id in self._early

    def sent_at(self, task_id: str) -> float | None:
        """Return when a task was sent from here, in seconds since the epoch; None when that is not known."""
        return self._sent.get(task_id)

    def unsure(self) -> None:
        """Expect no push of what was sent before: the queue was away for a while."""
        with self._lock:
            self._sure_since = time.time()

    def deliver(self, record: Record) -> None:
        """Bring a record to all who wait for its task; keep it when nobody does."""
        if record.kind != RESULT:
            return
        with self._lock:
            if record.ready:
                self._sent.pop(record.id, None)
            # Kept first, looked for second: somebody who begins to wait at this moment does it the other way round.
            self._keep(record)
            waiters = self._waiters
        wanted = False
        for reference in waiters:
            waiter = reference()
            if waiter is not None and waiter.wants(record.id):
                wanted = True
                waiter.deliver(record)
        if wanted:
            self.take(record.id)

    def take(self, task_id: str) -> Record | None:
        """Return what was kept for a task, once."""
        with self._lock:
            record = self._early.pop(task_id, None)
            if record is not None:
                self._size -= record.size
            return record

    def _keep(self, record: Record) -> None:
        early = self._early.pop(record.id, None)
        if early is not None:
            self._size -= early.size
        merged = outcome(early, record)
        self._early[record.id] = merged
        self._size += merged.size
        while self._size > self._limit and self._early:
            _, oldest = self._early.popitem(last=False)
            self._size -= oldest.size


class Replies(Receiver):
    """Receives the results of the tasks that this process has sent.

    The queue is durable, because RabbitMQ deprecates transient ones; it is not exclusive, because RabbitMQ may not
    have noticed yet that our last connection has died; it is bounded and disappears when it is not used. What it
    loses is in the archive. When RabbitMQ is down, tasks can be sent all the same.

    Args:
        servers: where.
        options: of the queue.
        reply_to: the address that the tasks of this process carry.
        mailbox: where the records go.
        prepare: checks the topology on a new connection.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        reply_to: str,
        mailbox: Mailbox,
        prepare: Callable[[amqp.Connection], None],
    ) -> None:
        without = "No results are pushed to this process now; they are read from the archive."
        super().__init__(servers, options, prepare, REPLIES, without)
        self._queue = reply_queue(reply_to)
        self._mailbox = mailbox

    def _enter(self, channel: amqp.Channel) -> None:
        options = self._options
        channel.queue_declare(
            self._queue,
            durable=True,
            exclusive=False,
            auto_delete=False,
            arguments={
                "x-expires": int(options.reply_expires * 1000),
                "x-max-length": options.reply_max_length,
                "x-overflow": "drop-head",
            },
        )
        channel.queue_bind(self._queue, RESULTS_EXCHANGE, routing_key=self._queue)
        channel.basic_consume(
            self._queue, no_ack=True, callback=lambda message: self._mailbox.deliver(Record.from_message(message))
        )
        # Between two connections something may have been pushed to a queue that was gone.
        self._mailbox.unsure()

    def _leave(self, channel: amqp.Channel) -> None:
        # Nobody will ever ask for this address again.
        channel.queue_delete(self._queue, nowait=True)

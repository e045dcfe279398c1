"""The push path: one reply queue and one thread for each client process, which wake the callers that wait."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import amqp

from celery_hybrid.archive.partition import Ends, ends_of
from celery_hybrid.names import RESULTS_EXCHANGE, reply_queue
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.receiver import Receiver
from celery_hybrid.rabbitmq.records import RESULT, Record, outcome

logger = logging.getLogger(__name__)

REPLIES = "replies"

# While tasks are sent, it is noted so often where the archive ends.
_ENDS_SECONDS = 60.0

#: Ids of tasks sent from here that are remembered; beyond that the oldest count as unknown.
SENT_LIMIT = 20_000


class Waiter(Protocol):
    """A waiter for results."""

    def wants(self, task_id: str) -> bool:
        """Return whether it waits for this task."""

    def deliver(self, record: Record) -> None:
        """Take a record; called by the receiving thread, must not block."""


@dataclass
class Sent:
    """What is known of a task that was sent from here.

    Attributes:
        at: when, by the monotonic clock.
        ends: where the archive ended before; None when that is not known.
        pushed: whether its final result was pushed.
    """

    at: float
    ends: Ends | None
    pushed: bool = False


class Mailbox:
    """Brings records to their waiters, and keeps those that have none yet.

    Args:
        limit: bytes to keep; the oldest are dropped beyond it, the archive has them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiters: tuple[weakref.ref[Waiter], ...] = ()
        # What was pushed and is not over, and the ids of those that no waiter has taken yet.
        self._pushed: OrderedDict[str, Record] = OrderedDict()
        self._early: set[str] = set()
        self._size = 0
        self._sent: OrderedDict[str, Sent] = OrderedDict()
        self._sure_since = float("-inf")
        #: Where the archive ended, lately.
        self.ends: Ends | None = None
        #: When a task was sent from here, lately, by the monotonic clock.
        self.latest = float("-inf")

    def join(self, waiter: Waiter) -> None:
        """Add a waiter; it is forgotten when nothing else refers to it."""
        with self._lock:
            living = [reference for reference in self._waiters if reference() is not None]
            self._waiters = (*living, weakref.ref(waiter))

    def sent(self, task_id: str) -> None:
        """Note that a task is sent from here while the reply queue is there, so its result will be pushed."""
        with self._lock:
            self.latest = time.monotonic()
            self._remember(task_id, Sent(self.latest, self.ends))

    def sent_here(self, task_id: str) -> bool:
        """Return whether a task was sent from here, or follows on one that was."""
        return task_id in self._sent

    def follow(self, task_id: str, others: Iterable[str]) -> None:
        """Note that tasks will be sent by others, for this process, behind one that was sent from here."""
        sent = self._sent.get(task_id)
        if sent is None:
            return
        for other in others:
            with self._lock:
                if other in self._sent:
                    self._sent.move_to_end(other)
                else:
                    self._remember(other, Sent(sent.at, sent.ends))

    def _remember(self, task_id: str, sent: Sent) -> None:
        # The id may have been used before.
        self._discard(task_id)
        self._sent[task_id] = sent
        self._sent.move_to_end(task_id)
        if len(self._sent) > SENT_LIMIT:
            self._sent.popitem(last=False)

    def expects(self, task_id: str) -> bool:
        """Return whether the result of a task will be pushed, or was and has not been taken."""
        sent = self._sent.get(task_id)
        return task_id in self._early or (sent is not None and not sent.pushed and sent.at >= self._sure_since)

    def ends_before(self, task_id: str) -> Ends | None:
        """Return where the archive ended before a task was sent, if from here; None when that is not known."""
        sent = self._sent.get(task_id)
        return sent.ends if sent is not None else None

    def unsure(self) -> None:
        """Expect no push of what was sent before: the queue was away for a while."""
        with self._lock:
            self._sure_since = time.monotonic()

    def deliver(self, record: Record) -> None:
        """Bring a record to all who wait for its task; keep it when there is none."""
        if record.kind != RESULT:
            return
        with self._lock:
            sent = self._sent.get(record.id)
            if sent is not None and record.ready:
                sent.pushed = True
            # Kept first, looked for second: a waiter that begins at this moment does it the other way round.
            held = self._keep(record)
            waiters = self._waiters
        if not held.ready and record.ready:
            return  # of an earlier run: the task runs again, and its end is still to come
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
            early = task_id in self._early
            self._early.discard(task_id)
            record = self._pushed.get(task_id)
            if record is not None and record.ready:
                self._discard(task_id)
            return record if early else None

    def look(self, task_id: str) -> Record | None:
        """Return what was pushed of a task, if no waiter has taken it: of the parents of what is waited for."""
        return self._pushed.get(task_id)

    def add(self, record: Record) -> None:
        """Keep what was found in the archive, for callers of :meth:`look`."""
        with self._lock:
            early = record.id in self._early
            self._keep(record)
            if not early:
                self._early.discard(record.id)

    def forget(self, task_id: str) -> None:
        """Drop what was pushed of a task."""
        with self._lock:
            self._discard(task_id)

    def _keep(self, record: Record) -> Record:
        """Keep the outcome of what was pushed of a task, and return it."""
        held = outcome(self._pushed.get(record.id), record)
        self._discard(record.id)
        self._pushed[record.id] = held
        self._early.add(record.id)
        self._size += held.size
        while self._size > self._limit and self._pushed:
            self._discard(next(iter(self._pushed)))
        return held

    def _discard(self, task_id: str) -> None:
        record = self._pushed.pop(task_id, None)
        self._early.discard(task_id)
        if record is not None:
            self._size -= record.size


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
        without = "No results are pushed to this process now; reading them from the archive."
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
        self._note_ends(channel.connection)

    def _idle(self) -> None:
        noted = self._mailbox.ends.at if self._mailbox.ends is not None else float("-inf")
        if self._connection is not None and self._mailbox.latest > noted + _ENDS_SECONDS:
            self._note_ends(self._connection)

    def _note_ends(self, connection: amqp.Connection) -> None:
        """Note where the archive ends: who waits for a task that is sent from now on reads no further back."""
        try:
            self._mailbox.ends = ends_of(connection, self._options.partitions)
        except amqp.exceptions.ChannelError as exc:
            # Pushing goes on; who waits reads more.
            logger.debug("Where the archive ends is not known: %s", exc)

    def _leave(self, channel: amqp.Channel) -> None:
        # This address will never be used again.
        channel.queue_delete(self._queue, nowait=True)

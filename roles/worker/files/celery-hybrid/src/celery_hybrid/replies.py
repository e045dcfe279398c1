"""The push path: one reply queue and one thread for each client process, which wake whoever waits."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import amqp

from celery_hybrid.connection import Servers, await_end, discard, farewell, translated
from celery_hybrid.errors import ResultStoreError, ResultStoreUnreachableError
from celery_hybrid.names import RESULTS_EXCHANGE, reply_queue
from celery_hybrid.options import Options
from celery_hybrid.records import RESULT, Record, outcome

logger = logging.getLogger(__name__)

#: Ids of tasks sent from here whose results were not pushed yet; beyond that the oldest count as unknown.
SENT_LIMIT = 20_000

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


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
        self._sent: OrderedDict[str, None] = OrderedDict()

    def join(self, waiter: Waiter) -> None:
        """Add somebody who may wait; it is forgotten when nobody else refers to it."""
        with self._lock:
            living = [reference for reference in self._waiters if reference() is not None]
            self._waiters = (*living, weakref.ref(waiter))

    def sent(self, task_id: str) -> None:
        """Note that a task was sent from here while the reply queue was there, so its result will be pushed."""
        with self._lock:
            self._sent[task_id] = None
            if len(self._sent) > SENT_LIMIT:
                self._sent.popitem(last=False)

    def expects(self, task_id: str) -> bool:
        """Tell whether the result of a task will be pushed, or was."""
        return task_id in self._sent or task_id in self._early

    def unsure(self) -> None:
        """Expect no push any more: the queue was away for a while."""
        with self._lock:
            self._sent.clear()

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


class Replies:
    """Receives what RabbitMQ pushes to this process, in a thread of its own.

    The queue is durable, because RabbitMQ deprecates transient ones; it is not exclusive, because RabbitMQ may not
    have noticed yet that our last connection has died; it is bounded and disappears when it is not used. What it
    loses is in the archive.

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
        self._servers = servers
        self._options = options
        self._queue = reply_queue(reply_to)
        self._mailbox = mailbox
        self._prepare = prepare
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None
        self._listening = threading.Event()
        self._attempted = threading.Event()
        self._stopping = threading.Event()
        #: Counts the times that the queue was (re)connected.
        self.generation = 0
        #: Why there is no push, None when there is or nobody has asked for it.
        self.failure: ResultStoreError | None = None

    @property
    def listening(self) -> bool:
        """Whether records are pushed at this moment."""
        return self._listening.is_set()

    def start(self, wait: bool = True) -> bool:
        """Begin to receive; return whether the queue is there.

        Args:
            wait: until the first attempt has ended. Later ones happen in the background: when RabbitMQ is down, tasks
                can be sent all the same, and their results are found in the archive.
        """
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="celery-hybrid replies", daemon=True)
                self._thread.start()
        if wait and not self._attempted.is_set():
            self._attempted.wait(self._options.connect_timeout + self._options.socket_timeout)
        return self.listening

    def stop(self) -> None:
        """Delete the queue and end: nobody will ever ask for this address again."""
        self._stopping.set()
        thread, connection, channel = self._thread, self._connection, self._channel
        if thread is None or connection is None or channel is None or not self.listening:
            return
        try:
            with self._writing:
                channel.queue_delete(self._queue, nowait=True)
                farewell(connection)
        except Exception as exc:
            logger.debug("The reply queue is left to its expiry: %s", exc)
            return
        thread.join(0.5)

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone; the thread is not here."""
        discard(self._connection)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                with translated("receiving results"):
                    self._listen()
            except ResultStoreError as exc:
                if not self._stopping.is_set():
                    self._lost(exc)
            except Exception:
                logger.exception("The receiver of results failed, and begins again.")
            finally:
                self._listening.clear()
                self._attempted.set()
                connection, self._connection, self._channel = self._connection, None, None
                if connection is not None and self._stopping.is_set():
                    await_end(connection)
                discard(connection)
            # After a long life of the connection the first attempts follow quickly.
            pause = _FIRST_PAUSE if time.monotonic() - begun > 2 * _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
            # Spread, so that not all clients come back in the same moment.
            self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311

    def _lost(self, exc: ResultStoreError) -> None:
        # Once for each outage, not for each attempt.
        first = self.failure is None or type(self.failure) is not type(exc)
        self.failure = exc
        if first:
            severe = not isinstance(exc, ResultStoreUnreachableError)
            logger.log(
                logging.ERROR if severe else logging.WARNING,
                "No results are pushed to this process now; they are read from the archive. %s",
                exc,
            )

    def _listen(self) -> None:
        options = self._options
        connection = self._connection = self._servers.connect("replies")
        self._prepare(connection)
        channel = self._channel = connection.channel()
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
        self.generation += 1
        if self.failure is not None:
            logger.info("Results are pushed to this process again.")
        self.failure = None
        self._listening.set()
        self._attempted.set()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=1.0)
            with self._writing:
                connection.heartbeat_tick()

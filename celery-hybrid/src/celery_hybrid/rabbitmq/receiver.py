"""Threads that receive what RabbitMQ pushes, over a connection of their own that comes back by itself."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable

import amqp

from celery_hybrid.errors import ResultStoreError, ResultStoreUnreachableError
from celery_hybrid.rabbitmq.connection import Servers, await_end, discard, farewell, translated
from celery_hybrid.rabbitmq.options import Options

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class Receiver:
    """Receives messages in a thread; what it does with them is up to subclasses.

    Args:
        servers: where.
        options: timeouts.
        prepare: checks the topology on a new connection.
        purpose: shown in RabbitMQ's list of connections, and the thread's name.
        without: what it means when nothing is received, for the log.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        prepare: Callable[[amqp.Connection], None],
        purpose: str,
        without: str,
    ) -> None:
        self._servers = servers
        self._options = options
        self._prepare = prepare
        self._purpose = purpose
        self._without = without
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None
        self._listening = threading.Event()
        self._attempted = threading.Event()
        self._stopping = threading.Event()
        #: Counts the times that it was (re)connected.
        self.generation = 0
        #: Why nothing is received, None when something is, or none was asked for.
        self.failure: ResultStoreError | None = None

    @property
    def listening(self) -> bool:
        """Whether messages are received at this moment."""
        return self._listening.is_set()

    def start(self, wait: bool = True) -> bool:
        """Begin to receive; return whether that works.

        Args:
            wait: until the first attempt has ended. Later ones happen in the background.
        """
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                    self._thread = threading.Thread(
                        target=self._run, name=f"celery-hybrid {self._purpose}", daemon=True
                    )
                    self._thread.start()
        if wait and not self._attempted.is_set():
            self._attempted.wait(self._options.connect_timeout + self._options.socket_timeout)
        return self.listening

    def stop(self) -> None:
        """End for good."""
        self._stopping.set()
        thread, connection, channel = self._thread, self._connection, self._channel
        if thread is None or connection is None or channel is None or not self.listening:
            return
        try:
            with self._writing:
                self._leave(channel)
                farewell(connection)
        except Exception as exc:
            logger.debug("The connection for %s was not closed in order: %s", self._purpose, exc)
            return
        thread.join(0.5)

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone; the thread is not here."""
        discard(self._connection)

    def _enter(self, channel: amqp.Channel) -> None:
        """Begin to consume on a new channel."""
        raise NotImplementedError

    def _leave(self, channel: amqp.Channel) -> None:
        """Say what is to be said before the connection ends on purpose."""

    def _idle(self) -> None:
        """Do what is due; called at least once a second while receiving."""

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                with translated(f"receiving {self._purpose}"):
                    self._listen()
            except ResultStoreError as exc:
                if not self._stopping.is_set():
                    self._lost(exc)
            except Exception:
                logger.exception("The receiver of %s failed; restarting it.", self._purpose)
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
            logger.log(logging.ERROR if severe else logging.WARNING, "%s %s", self._without, exc)

    def _listen(self) -> None:
        connection = self._connection = self._servers.connect(self._purpose)
        self._prepare(connection)
        channel = self._channel = connection.channel()
        self._enter(channel)
        self.generation += 1
        if self.failure is not None:
            logger.info("RabbitMQ is back: %s are received again.", self._purpose)
        self.failure = None
        self._listening.set()
        self._attempted.set()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=1.0)
            with self._writing:
                self._idle()
                connection.heartbeat_tick()

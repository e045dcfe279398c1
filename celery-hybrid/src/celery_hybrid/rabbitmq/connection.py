"""Connections to RabbitMQ: of this package alone, never those of Celery's broker.

py-amqp is used directly, because each of its calls is synchronous here and needs a bound in time. Its connections
are not thread-safe and do not survive a fork, so every one of them belongs to a :class:`Link`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import amqp

from celery_hybrid.errors import (
    HybridError,
    RecordTooLargeError,
    ResultStoreError,
    ResultStoreStartingError,
    ResultStoreUnreachableError,
    TopologyError,
)
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.urls import Server

logger = logging.getLogger(__name__)

HOW_TO_DECLARE = (
    "Run the rabbitmq role of celeryops.hybrid against that host, or let a user who may configure the vhost set "
    "result_backend_transport_options = {'declare': True}"
)

#: How long a RabbitMQ that answers may take until its streams do.
STARTING_SECONDS = 10.0
# How RabbitMQ words the one precondition that only deleting an object helps against. All others, such as
# consumer_timeout, leave objects alone.
_OTHER_ARGUMENTS = ("inequivalent arg", "cannot redeclare")
_CHANNEL_IS_OVER = ("timed out", "unknown delivery tag")
# Half a minute without an answer of the kernel at the other end is the end of a connection.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3, socket.TCP_NODELAY: 1}


class Connection(amqp.Connection):  # type: ignore[misc]
    """A connection none of whose reads outlasts a deadline.

    Attributes:
        deadline: by the monotonic clock; None for the timeouts of the single reads alone.
    """

    deadline: float | None = None

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read and handle one frame.

        Raises:
            TimeoutError: there was none in time.
        """
        return super().blocking_read(self.patience(timeout))

    def patience(self, timeout: float | None) -> float | None:
        """Return the seconds that one read may take.

        Raises:
            TimeoutError: the deadline is over.
        """
        if self.deadline is None:
            return timeout
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        usual = self.transport.sock.gettimeout() if timeout is None else timeout
        return remaining if usual is None else min(usual, remaining)


class Servers:
    """The hosts of the result store: one, or several of a cluster, of which any will do.

    Args:
        servers: where and as whom.
        options: timeouts and TLS.
    """

    def __init__(self, servers: list[Server], options: Options) -> None:
        self._servers = servers
        self._options = options
        # Each process begins with another host, so that a cluster shares the load.
        self._current = random.randrange(len(servers))  # noqa: S311 - spreads load, protects nothing

    def connect(self, purpose: str, timeout: float | None = None) -> Connection:
        """Return a new connection to the host that worked last, else to the next that answers.

        Args:
            purpose: shown in RabbitMQ's list of connections.
            timeout: seconds for all hosts together; each gets ``connect_timeout`` at most. The connection keeps to
                it until its ``deadline`` is changed.

        Raises:
            ResultStoreUnreachableError: no host answered.
            ResultStoreError: a host refused the login or the vhost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        failures: list[str] = []
        for _ in self._servers:
            server = self._servers[self._current]
            try:
                with translated(f"RabbitMQ at {server}"):
                    return self._connect(server, purpose, deadline)
            except ResultStoreUnreachableError as exc:
                failures.append(str(exc))
                self._current = (self._current + 1) % len(self._servers)
        raise ResultStoreUnreachableError(" ".join(failures))

    def _connect(self, server: Server, purpose: str, deadline: float | None) -> Connection:
        options = self._options
        limit = options.connect_timeout
        if deadline is not None:
            limit = max(0.01, min(limit, deadline - time.monotonic()))
        name = options.connection_name or f"celery-hybrid@{socket.gethostname()}:{os.getpid()}"
        connection = Connection(
            host=server.address,
            userid=server.user,
            password=server.password,
            virtual_host=server.vhost,
            login_method=options.login_method,
            ssl=self._tls(server),
            connect_timeout=limit,
            heartbeat=options.heartbeat,
            socket_settings=_KEEPALIVE,
            client_properties={"connection_name": f"{name} {purpose}", "product": "celery-hybrid"},
        )
        connection.deadline = deadline
        connection.connect()
        # The bound for every read and write that gives none of its own; it holds under gevent as well, where
        # the kernel's SO_RCVTIMEO does not.
        connection.transport.sock.settimeout(options.socket_timeout)
        return connection

    def _tls(self, server: Server) -> dict[str, Any] | bool:
        if not server.tls:
            return False
        options = self._options
        # With a server_hostname py-amqp checks the name in the certificate.
        tls: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": server.host}
        if options.ca_certs:
            tls["ca_certs"] = options.ca_certs
        if options.certfile:
            tls |= {"certfile": options.certfile, "keyfile": options.keyfile}
        return tls


class Link:
    """One connection that threads take turns in, opened when it is needed and again when it is lost.

    Args:
        servers: where to connect to.
        purpose: shown in RabbitMQ's list of connections.
        prepare: called with every new connection before it is used.
    """

    def __init__(
        self, servers: Servers, purpose: str, prepare: Callable[[amqp.Connection], None] | None = None
    ) -> None:
        self._servers = servers
        self._purpose = purpose
        self._prepare = prepare
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._deadline: float | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known without asking."""
        return self._connection is not None

    @contextlib.contextmanager
    def turn(self, timeout: float) -> Iterator[None]:
        """Hold the connection alone.

        Args:
            timeout: seconds to wait for other threads.

        Raises:
            ResultStoreUnreachableError: others kept it for longer, which only happens when RabbitMQ does not answer.
        """
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise ResultStoreUnreachableError(
                f"RabbitMQ does not answer: other threads have been waiting for more than {timeout:.1f} s."
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Let no read outlast a deadline, by the monotonic clock; only within :meth:`turn`."""
        self._set_deadline(deadline)
        try:
            yield
        finally:
            self._set_deadline(None)

    def _set_deadline(self, deadline: float | None) -> None:
        self._deadline = deadline
        if self._connection is not None:
            self._connection.deadline = deadline

    def connection(self, timeout: float | None = None) -> Connection:
        """Return the connection, made if there is none; only within :meth:`turn`.

        A RabbitMQ that has just started is given a moment until its streams answer.

        Args:
            timeout: seconds for connecting, and for a first use that is prepared by ``prepare``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = time.monotonic() + (STARTING_SECONDS if timeout is None else min(timeout, STARTING_SECONDS))
        while self._connection is None:
            remaining = None if deadline is None else deadline - time.monotonic()
            connection = self._servers.connect(self._purpose, remaining)
            try:
                if self._prepare is not None:
                    self._prepare(connection)
            except ResultStoreStartingError:
                discard(connection)
                pause = min(0.2, patience - time.monotonic())
                if pause <= 0:
                    raise
                time.sleep(pause)
                continue
            except BaseException:
                discard(connection)
                raise
            connection.deadline = self._deadline
            self._connection = connection
            HEARTBEATS.watch(self)
        return self._connection

    def drop(self) -> None:
        """Forget the connection because it failed: what it would still deliver must not be taken for something else."""
        connection, self._connection = self._connection, None
        discard(connection)

    def close_in_background(self) -> None:
        """Forget a connection that may still work, as after a time-out, and close it in order in the background.

        RabbitMQ may be sending, and logs an error when the other end is simply gone.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            threading.Thread(
                target=close_connection, args=(connection,), name="celery-hybrid closing", daemon=True
            ).start()
        except RuntimeError:  # no more threads: the interpreter is about to end
            discard(connection)

    def tick(self) -> None:
        """Answer and send heartbeats of an idle connection, and notice that the other end has closed it."""
        if self._connection is None or not self._lock.acquire(blocking=False):
            return  # in use: its user finds out by itself
        try:
            if self._connection is not None:
                with contextlib.suppress(TimeoutError):
                    while True:
                        self._connection.drain_events(timeout=0.001)
                self._connection.heartbeat_tick()
        except Exception as exc:
            logger.debug("The idle connection %s is lost: %s", self._purpose, exc)
            self.drop()
        finally:
            self._lock.release()

    def close(self, patience: float = 0.2) -> None:
        """Close the connection in order, within a bounded time: nothing may hang at the end of a process.

        Args:
            patience: seconds to wait for a thread that uses the connection. With less than that thread's shortest step
                the connection stays open until the process ends, and RabbitMQ logs an error if it is sending then.
        """
        if self._lock.acquire(timeout=patience):
            try:
                connection, self._connection = self._connection, None
                if connection is not None:
                    close_connection(connection)
            finally:
                self._lock.release()

    def abandon(self) -> None:
        """In a child: leave the parent's connection alone. The lock may be held by a thread that is not here."""
        connection, self._connection = self._connection, None
        discard(connection)


class Heartbeats:
    """A thread of the process that keeps idle connections alive."""

    INTERVAL = 5.0

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def watch(self, link: Link) -> None:
        """Keep a connection alive from now on."""
        with self._lock:
            self._links.add(link)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="celery-hybrid heartbeats", daemon=True)
                self._thread.start()

    def after_fork(self) -> None:
        """In the child there is no such thread."""
        self._reset()

    def _run(self) -> None:
        while True:
            time.sleep(self.INTERVAL)
            with self._lock:
                links = list(self._links)
                if not links:
                    self._thread = None
                    return
            for link in links:
                link.tick()
            del links


HEARTBEATS = Heartbeats()


def discard(connection: amqp.Connection | None) -> None:
    """Let go of a connection without a word to the server.

    Only the descriptor is closed. py-amqp's own ``collect()`` shuts the socket down, which would end the connection
    of the parent as well when a fork has inherited it.
    """
    if connection is None:
        return
    with contextlib.suppress(Exception):
        transport = connection._transport  # its property would connect again when there is none
        sock, transport.sock, transport.connected = transport.sock, None, False
        os.close(sock.detach())
    with contextlib.suppress(Exception):
        connection.collect()


def farewell(connection: amqp.Connection) -> None:
    """Tell the server that the connection ends on purpose.

    Without :func:`await_end` afterwards the server's log calls it lost all the same.
    """
    with contextlib.suppress(Exception):
        connection._transport.sock.settimeout(0.5)
        connection.send_method(amqp.spec.Connection.Close, "BsBB", (200, "good-bye", 0, 0))


def close_connection(connection: amqp.Connection) -> None:
    """Tell the server, wait for its answer, and let go of the connection; takes at most about a second."""
    farewell(connection)
    await_end(connection)
    discard(connection)


def await_end(connection: amqp.Connection) -> None:
    """Wait for the server's answer to :func:`farewell`, for at most half a second."""
    deadline = time.monotonic() + 0.5
    while connection.connected and time.monotonic() < deadline:
        # Whatever else it had to say, as that a consumer ends, does not matter any more.
        with contextlib.suppress(Exception):
            connection.drain_events(timeout=0.5)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the errors of py-amqp into those of this package, in words that name the place and the remedy.

    Args:
        doing: what was tried, or where.
    """
    try:
        yield
    except HybridError:
        raise
    except amqp.exceptions.NotFound as exc:
        if "down or inaccessible" in str(exc.reply_text):
            raise ResultStoreStartingError(f"{doing}: RabbitMQ is starting: {exc.reply_text}.") from exc
        raise TopologyError(f"{doing}: {exc.reply_text}. {HOW_TO_DECLARE}.") from exc
    except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) as exc:
        reason = str(exc.reply_text or "the login was refused")
        raise ResultStoreError(
            f"{doing}: {reason}. Check user, password and vhost in result_backend, and the user's rights in the vhost."
        ) from exc
    except amqp.exceptions.PreconditionFailed as exc:
        if "larger than" in str(exc.reply_text):
            raise RecordTooLargeError(
                f"{doing}: {exc.reply_text}. Pass and return less, and keep large data elsewhere; or raise "
                "max_message_size in RabbitMQ (in rabbitmq_config of the role)."
            ) from exc
        if any(words in str(exc.reply_text) for words in _OTHER_ARGUMENTS):
            raise TopologyError(
                f"{doing}: {exc.reply_text}. An object of that name exists with other arguments; RabbitMQ cannot "
                "change them, so it has to be deleted first."
            ) from exc
        if any(words in str(exc.reply_text) for words in _CHANNEL_IS_OVER):
            raise ResultStoreUnreachableError(
                f"{doing}: RabbitMQ has closed the channel: {exc.reply_text}. It is opened again; what was not "
                "acknowledged is delivered again."
            ) from exc
        raise ResultStoreError(f"{doing}: RabbitMQ refused it: {exc.reply_text}.") from exc
    except ssl.SSLCertVerificationError as exc:
        raise ResultStoreError(
            f"{doing}: its certificate is not accepted: {exc.verify_message}. Check the host in result_backend, and "
            "ca_certs, which names the CA that signed it."
        ) from exc
    except ssl.SSLError as exc:
        raise ResultStoreUnreachableError(f"{doing}: TLS failed: {exc.reason or exc}.") from exc
    except amqp.exceptions.MessageNacked as exc:
        raise ResultStoreUnreachableError(
            f"{doing}: RabbitMQ did not keep it (nack): one of its queues is full, has failed, or was being deleted."
        ) from exc
    except TimeoutError as exc:
        raise ResultStoreUnreachableError(
            f"{doing}: no answer in time. RabbitMQ may be down or out of reach, or it blocks publishers because its "
            "memory or disk alarm is on."
        ) from exc
    except (amqp.exceptions.AMQPError, OSError) as exc:
        reason = getattr(exc, "reply_text", None) or str(exc) or type(exc).__name__
        raise ResultStoreUnreachableError(f"{doing}: {reason}.") from exc
    except (AttributeError, KeyError, TypeError) as exc:
        # py-amqp stumbles over its own state when a connection ends in the middle of a call.
        raise ResultStoreUnreachableError(f"{doing}: the connection was lost.") from exc

"""The consumer of a worker (``worker_consumer``): keeps tasks while Redis comes and goes, and dead-letters bad ones.

What it adds to Celery's own:

* When the connection to Redis is lost, Celery (5.7) exits, or puts the messages of running tasks back, so that they run
  twice. Here a running task stays with its worker: its message moves to the next connection and is acknowledged
  there. What is not running yet (ETA, prefetched) goes back to its queue as soon as Redis answers.
* While a task is unacknowledged its claim in Redis is renewed, so the visibility timeout only has to be longer than an
  outage, not than the longest task or ETA. It starts to count when the worker dies. A claim that is lost all the same,
  because this worker was paused or cut off for longer, is noticed: what had not begun does not begin here, and nothing
  is done to the claim of the worker that has the task now.
* Every message that Celery would log and delete is dead-lettered first, see
  :mod:`celery_hybrid.dead_letters.letter`; one that would make the worker exit, too.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

import kombu
from celery import bootsteps
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.consumer import consumer as base
from kombu.exceptions import ContentDisallowed
from kombu.transport import virtual

from celery_hybrid.broker import claims
from celery_hybrid.dead_letters.keeping import DeadLetters
from celery_hybrid.dead_letters.letter import (
    ETA,
    MALFORMED,
    REFUSED,
    UNDECODABLE,
    UNKNOWN,
    UNROUTABLE,
    DeadLetter,
)
from celery_hybrid.dead_letters.replay import send
from celery_hybrid.worker import answers

# Adds 'inspect result_store' and others, as the entry point does in a worker that the celery command starts.
from celery_hybrid.worker import control as _control  # noqa: F401
from celery_hybrid.worker.request import Request

logger = logging.getLogger(__name__)

#: Longest time in seconds between two renewals of the claims.
_CARE_INTERVAL = 5.0
#: Longest pause between two attempts to connect; Celery's grows to 30 s, which is the time in which a worker shall
#: consume again.
_LONGEST_PAUSE = 5.0
# The kernel ends a connection whose other end is silent for a quarter of a minute, whether something was sent
# (TCP_USER_TIMEOUT, milliseconds) or not. Without that a dead BRPOP is waited for (kombu before 5.7: indefinitely).
_SOCKET = {socket.TCP_USER_TIMEOUT: 15_000, socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 2}
_OPTIONS = {
    "socket_keepalive": True,
    "socket_keepalive_options": _SOCKET,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
}


class Handover(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes unacknowledged messages over to a new connection, behind the task consumer and before the event loop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, c: Consumer) -> None:
        """Begin."""
        c.take_over()

    def stop(self, c: Consumer) -> None:
        """End."""
        c.stop_caring()


class Consumer(base.Consumer):  # type: ignore[misc]
    """``worker_consumer = 'celery_hybrid.worker.consumer:Consumer'``.

    Raises:
        OptionError: ``worker_dead_letters`` is wrong, or results are not in RabbitMQ.
    """

    pool: Any = None
    initial_prefetch_count: int
    #: Celery 5.5 does not count them, and the watchdog looks whether they go on.
    broker_connection_retry_attempt = 0

    class Blueprint(base.Consumer.Blueprint):  # type: ignore[misc]
        """Celery's, and the handover."""

        default_steps = (*base.Consumer.Blueprint.default_steps, Handover)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Messages that no connection has at the moment, by their delivery tags.
        self._held: dict[str, Any] = {}
        self._known: list[Any] = []
        #: What is done with, and Redis does not know yet: the message, and what reject() is to be told.
        self._owed: dict[str, tuple[Any, bool | None]] = {}
        self._lost = self._interrupted = False
        #: Claims that are lost while their tasks run.
        self._strays: set[str] = set()
        self._timer_entry: Any = None
        super().__init__(*args, **kwargs)
        self.app.control.mailbox = answers.ForgivingMailbox.of(self.app.control.mailbox)
        self.dead_letters = DeadLetters(self.app, self.hostname)

    # Connections

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, retrying indefinitely, and notice when the other end is gone."""
        if conn.transport.driver_type == "redis":
            conn.transport_options = {**_OPTIONS, **(conn.transport_options or {})}
        connect = conn.ensure_connection

        def ensure_connection(errback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def failed(exc: BaseException, interval: float) -> None:
                attempt = self.broker_connection_retry_attempt + (interval > 0)
                errback(exc, interval)
                self.broker_connection_retry_attempt = attempt

            return connect(failed, *args, interval_max=_LONGEST_PAUSE, **kwargs)

        conn.ensure_connection = ensure_connection
        try:
            return super().ensure_connected(conn)
        finally:
            del conn.ensure_connection
            self.broker_connection_retry_attempt = 0

    def connect(self) -> Any:
        """Connect; renew the claims before Redis is searched for those that have run out, which comes first."""
        conn = self.connection_for_read(heartbeat=self.amqheartbeat)
        if self._held and hasattr(conn.default_channel, "unacked_index_key"):
            self._renew(conn.default_channel, self._held)
        if hasattr(conn.transport, "on_undecodable"):  # celery_hybrid.broker.transport
            conn.transport.on_undecodable = self.on_undecodable
        if self.hub:
            conn.transport.register_with_event_loop(conn.connection, self.hub)
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Keep unacknowledged messages, while Celery gets rid of the connection."""
        self._lost = self._interrupted = True
        for channel in _channels(self.connection):
            # Redis is gone, so nothing can be put back now: Celery 5.7 exits when it tries. And what is running must
            # not be put back at all.
            channel.do_restore = False
            self._held |= _in_hand(channel)
        self._known += [*state.reserved_requests, *state.active_requests]
        prefetch = self.initial_prefetch_count
        super().on_connection_error_after_connected(exc)
        # Celery takes as many messages less as tasks are running, because the new connection does not know of them.
        # Here it does.
        self.initial_prefetch_count = prefetch
        self._maximum_prefetch_restored = True

    def on_close(self) -> None:
        """Forget what has not begun, unless the pool has it already."""
        if not self._lost:
            super().on_close()
            return
        self._lost = False
        # Celery would clear the queue of the pool as well, and with that lose track of tasks whose child has got them
        # but has not said so yet: they would run twice.
        pool, self.pool = self.pool, None
        semaphore = getattr(self.controller, "semaphore", None)
        free = semaphore.value if semaphore else 0
        try:
            super().on_close()
        finally:
            self.pool = pool
            if semaphore:
                semaphore.value = free
        self._known = [request for request in self._known if _runs(request)]
        state.reserved_requests.update(self._known)

    def take_over(self) -> None:
        """Take unacknowledged messages over to the new connection: what runs stays, all else is requeued."""
        channel = self.task_consumer.channel
        running = {
            request._message.delivery_tag
            for request in (*self._known, *state.reserved_requests, *state.active_requests)
            if _runs(request)
        }
        kept = back = 0
        # The oldest last, because it is put to the front of the queue.
        for tag, message in reversed(list(self._held.items())):
            if tag in running or tag in self._owed:
                message.channel = channel
                # Not the Redis transport's own, which would write the claim again if another worker has taken it.
                virtual.QoS.append(channel.qos, message, tag)
                kept += 1
            else:
                try:
                    # Only this package's transport knows whether the message was still ours.
                    back += channel.qos.restore_by_tag(tag) is not False
                except self.channel_errors as exc:
                    logger.warning("A task that has not begun comes back after the visibility timeout: %r", exc)
                message.channel = None
            del self._held[tag]
        self._known.clear()
        if self._interrupted:
            self._interrupted = False
            logger.warning(
                "Connected again: %d running tasks go on, %d that had not begun are back in Redis.", kept, back
            )
        self._read_undeliverable()
        self._care()

    # While connected

    def _care(self) -> None:
        """Renew the claims, and settle what could not be settled; notice a Redis that does not answer."""
        for tag in list(self._owed):
            self._settle(tag)
        interval = _CARE_INTERVAL
        in_hand: set[str] = set()
        for channel in _channels(self.connection):
            if hasattr(channel, "unacked_index_key"):
                held = _in_hand(channel)
                self._renew(channel, held)
                in_hand |= held.keys()
                interval = min(interval, channel.visibility_timeout / 4)
        self._strays &= in_hand
        self._timer_entry = self.timer.call_after(interval, self._care_later)

    def _renew(self, channel: Any, held: dict[str, Any]) -> None:
        """Renew the claims on messages, and let go of those that are lost."""
        names = [name for name in held if name not in self._strays]
        leased = claims.now()
        if not names:
            with channel.conn_or_acquire() as client:
                client.ping()
            return
        if not hasattr(channel, "renew"):
            # kombu's own transport, which counts in the time of each worker and cannot tell what is lost.
            with channel.conn_or_acquire() as client:
                client.zadd(channel.unacked_index_key, dict.fromkeys(names, time.time()), xx=True)
            return
        lost = channel.renew(names)
        for name in names:
            held[name].leased = leased
        if lost:
            self._lose({name: held[name] for name in lost})

    def _lose(self, lost: dict[str, Any]) -> None:
        """Let go of messages that are not ours any more: nothing of them begins here, and what runs goes on."""
        dropped = 0
        for name, message in lost.items():
            request = _request_of(message)
            if request is not None and _runs(request):
                self._strays.add(name)
                continue
            self._drop(message)
            dropped += 1
        logger.warning(
            "%d claims are lost, because this worker did not renew them in time: %d tasks that had not begun are left "
            "to the worker that has them now, %d that run go on and may run twice.",
            *(len(lost), dropped, len(lost) - dropped),
        )

    def _drop(self, message: Any) -> None:
        name = message.delivery_tag
        self._owed.pop(name, None)
        channel, message.channel = message.channel, None
        if self._held.pop(name, None) is not None or channel is None:
            return
        virtual.QoS.ack(channel.qos, name)
        request = _request_of(message)
        if request is not None and request.eta and not request.due:
            # While it waited there was room for one more.
            self.qos.decrement_eventually()

    def is_lost(self, message: Any) -> bool:
        """Return whether another worker may have the message of a task that runs here."""
        return message.delivery_tag in self._strays

    def may_begin(self, message: Any) -> bool:
        """Return whether a task may begin: its message is still ours, and will be for a while.

        A worker that was paused longer than the visibility timeout comes to its timers before it renews.
        """
        channel = message.channel
        if channel is None:
            return False
        leased = getattr(message, "leased", None)
        if leased is None or not hasattr(channel, "renew"):
            return True
        if claims.now() - leased > channel.visibility_timeout / 2:
            try:
                self._renew(channel, {message.delivery_tag: message})
            except Exception as exc:
                logger.warning(
                    "Task %s does not begin, because its claim cannot be renewed, and goes back to Redis: %r",
                    *(message.headers.get("id"), exc),
                )
                self.settle(message, True)
                return False
        return message.channel is not None

    def _care_later(self) -> None:
        # Nothing catches the errors of a greenlet's timer.
        if self.connection is None:
            return
        try:
            self._care()
        except Exception as exc:
            # Lost, unless a greenlet's timer has it, whose errors nothing catches; or Redis is a replica now.
            if self.hub and isinstance(exc, self.connection_errors):
                raise
            logger.warning("Redis does not renew the claims of this worker; retrying: %r", exc)
            self._timer_entry = self.timer.call_after(_CARE_INTERVAL, self._care_later)

    def stop_caring(self) -> None:
        """End the timer."""
        entry, self._timer_entry = self._timer_entry, None
        if entry is not None:
            with contextlib.suppress(Exception):
                self.timer.cancel(entry)

    def settle(self, message: Any, requeue: bool | None = None) -> None:
        """Acknowledge a message, or reject it; again with the next connection if it does not succeed.

        Args:
            message: kombu's.
            requeue: what to tell reject(); None acknowledges.
        """
        tag = message.delivery_tag
        self._owed[tag] = (message, requeue)
        # The name that Celery 5.7 has for what may be done immediately where there is no event loop.
        soon: Any = getattr(self, "call_soon_ack", self.call_soon)
        soon(self._settle, tag)

    def _settle(self, tag: str) -> None:
        message, requeue = self._owed.get(tag, (None, None))
        if message is None or tag in self._held:
            return
        try:
            if requeue is None:
                message.ack()
            else:
                message.reject(requeue=requeue)
        except message.MessageStateError:
            pass
        except Exception as exc:
            logger.warning("Could not acknowledge a task in Redis; retrying: %r", exc)
            return
        self._owed.pop(tag, None)

    def leave(self, message: Any) -> None:
        """Let go of a message that can neither be used nor dead-lettered; Redis brings it again after a while."""
        self._owed.pop(message.delivery_tag, None)
        self._held.pop(message.delivery_tag, None)
        if message.channel is not None:
            virtual.QoS.ack(message.channel.qos, message.delivery_tag)

    def send_again(self, message: Any, headers: dict[str, Any]) -> None:
        """Send a message once more, with other headers.

        Raises:
            Exception: whatever the transport raises; it was not sent, or it is not known.
        """
        channel = getattr(self.task_consumer, "channel", None)
        if channel is None or channel.connection is None:
            raise ConnectionError("there is no connection to Redis at the moment")
        letter = DeadLetter.of(message, MALFORMED, self.queue_of(message), self.hostname)
        send(channel, letter, letter.queue, headers, letter.properties)

    def queue_of(self, message: Any) -> str:
        """Return the queue that a message came from."""
        info = message.delivery_info or {}
        exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
        if exchange:
            for queue in self.app.amqp.queues.consume_from.values():
                if queue.exchange.name == exchange and queue.routing_key == key:
                    return str(queue.name)
        return str(key)

    # Tasks that were put back or lost must not run from here as well: Celery leaves their timers alone.

    def apply_eta_task(self, task: Any) -> None:
        """Run a task whose time has come."""
        if task._message.channel is not None:
            task.due = True
            super().apply_eta_task(task)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: Any) -> Any:
        if request._message.channel is None:
            return None
        request.due = True
        return super()._limit_post_eta(request, bucket, tokens)

    def _limit_move_to_pool(self, request: Any) -> None:
        if request._message.channel is not None:
            super()._limit_move_to_pool(request)

    # Bad messages

    def update_strategies(self) -> None:
        """Let all tasks have this package's requests."""
        for task in self.app.tasks.values():
            own = symbol_by_name(task.Request)
            if not issubclass(own, Request):
                kind = Request if own is base_request() else type(own.__name__, (Request, own), {})
                task.Request = type(kind.__name__, (kind,), {"consumer": self})
            elif own.consumer is not self:
                task.Request = type(own.__name__, (own,), {"consumer": self})
            # Requeued indefinitely; lost_retries of worker_dead_letters has an end.
            task.reject_on_worker_lost = False
        super().update_strategies()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            message.received_at = time.time()
            try:
                fault = fault_of(message)
            except ContentDisallowed as exc:
                return self.on_invalid_task(None, message, exc)
            except Exception as exc:
                return self.on_decode_error(message, exc)
            if fault:
                return self.on_invalid_task(None, message, InvalidTaskError(fault))
            try:
                return handle(message)
            except Exception as exc:
                # A KeyError counts as a lost connection with kombu 5.7; and any other would end the worker, with the
                # message back in its queue.
                lost = isinstance(exc, self.connection_errors) and not isinstance(exc, KeyError)
                if lost or message.acknowledged or any(r._message is message for r in state.reserved_requests):
                    raise
                return self.on_invalid_task(None, message, exc)

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Dead-letter a message that cannot be decoded."""
        if str((message.delivery_info or {}).get("exchange")).endswith(".pidbox"):
            # Of a worker that asks its neighbours, for example; no task is lost with it.
            logger.warning("Ignoring a remote control command: %s", exc)
            return
        reason = REFUSED if isinstance(exc, ContentDisallowed) else UNDECODABLE
        self._put_away(message, reason, exc, partial(super().on_decode_error, message, exc))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Dead-letter a message that is not a task message."""
        exc = InvalidTaskError("it names no task")
        self._put_away(message, MALFORMED, exc, partial(super().on_unknown_message, body, message))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Dead-letter a message whose task is not registered."""
        self._put_away(message, UNKNOWN, exc, partial(super().on_unknown_task, body, message, exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Dead-letter a message that is malformed, or whose content type is not accepted."""
        if isinstance(exc, ContentDisallowed):
            reason = REFUSED
        else:
            reason = ETA if any(f"invalid {name} value" in str(exc) for name in ("ETA", "expires")) else MALFORMED
        self._put_away(message, reason, exc, partial(super().on_invalid_task, body, message, exc))

    def on_undecodable(self, raw: bytes, queue: str, reason: str) -> bool:
        """Dead-letter an element of a queue that is not a message; what the transport calls.

        Returns:
            whether it is kept durably and may be removed.
        """
        return self.dead_letters.keep(DeadLetter.of_bytes(raw, queue, reason, self.hostname))

    def put_away(self, message: Any, reason: str, exc: BaseException | None = None, traceback: str = "") -> bool:
        """Keep a message as a dead letter; return whether it may leave Redis."""
        letter = DeadLetter.of(message, reason, self.queue_of(message), self.hostname, exc, traceback)
        return self.dead_letters.keep(letter)

    def _put_away(self, message: Any, reason: str, exc: Exception, then: Callable[[], Any]) -> None:
        if not self.put_away(message, reason, exc):
            self.leave(message)
            return
        try:
            then()
        except Exception:
            # Celery's own words about a message may stumble over it.
            logger.debug("Celery could not report a bad message.", exc_info=True)
        if not message.acknowledged:
            self.settle(message)

    def _read_undeliverable(self) -> None:
        """Dead-letter what publishers could not route: kombu keeps it in a queue that has no consumer."""
        name = (self.connection.transport_options or {}).get("deadletter_queue")
        if not name:
            return

        def received(message: Any) -> None:
            message.received_at = time.time()
            exc = InvalidTaskError(f"no queue is bound to {message.delivery_info}")
            if self.put_away(message, UNROUTABLE, exc):
                self.settle(message)
            else:
                self.leave(message)

        channel = self.connection.channel()
        channel.basic_qos(0, 10, False)
        queue = kombu.Queue(name, kombu.Exchange(""), routing_key=name)
        kombu.Consumer(channel, [queue], on_message=received, auto_declare=False).consume()


def fault_of(message: Any) -> str | None:
    """Return what makes a message one that Celery cannot survive, or None.

    Raises:
        Exception: whatever decoding it raises.
    """
    headers = message.headers
    if not isinstance(headers, dict):
        return "its headers are not a mapping"
    body = message.payload
    if "task" not in headers:
        # Protocol 1; or no task at all, which Celery finds out.
        odd = isinstance(body, dict) and "task" in body and not _is_id(body.get("id"))
        return "it has no id" if odd else None
    if not isinstance(headers["task"], str) or not _is_id(headers.get("id")):
        return "its name is not text, or its id is neither text nor a UUID"
    if isinstance(body, (list, tuple)):
        kinds: tuple[Any, ...] = ((list, tuple), dict, (dict, type(None)))
        if len(body) != 3 or not all(isinstance(each, kind) for each, kind in zip(body, kinds, strict=True)):
            return "its body is not [args, kwargs, embed]"
    elif not isinstance(body, dict) or "args" not in body:
        return "its body is not [args, kwargs, embed]"
    limits = headers.get("timelimit") or (None, None)
    if not isinstance(limits, (list, tuple)) or len(limits) != 2 or not all(_is_limit(each) for each in limits):
        return "its timelimit is not a pair of numbers"
    if not isinstance(headers.get("retries") or 0, int):
        return "its retries are not a number"
    stamps = headers.get("stamped_headers") or []
    if not isinstance(stamps, list) or not all(isinstance(each, str) for each in stamps):
        return "its stamped_headers are not names"
    if not isinstance(headers.get("stamps") or {}, dict):
        return "its stamps are not a mapping"
    return None


def _is_id(value: Any) -> bool:
    # kombu's JSON keeps a UUID one.
    return isinstance(value, UUID) or (isinstance(value, str) and bool(value))


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def base_request() -> type:
    """Return Celery's own class of requests."""
    from celery.worker.request import Request as CeleryRequest

    return CeleryRequest  # type: ignore[no-any-return]


def _channels(connection: Any) -> Iterator[Any]:
    transport = getattr(connection, "_transport", None)
    for channel in list(getattr(transport, "channels", None) or ()):
        if channel._qos is not None and not channel.closed:
            yield channel


def _in_hand(channel: Any) -> dict[str, Any]:
    qos = channel._qos
    return {tag: message for tag, message in list(qos._delivered.items()) if tag not in qos._dirty}


def _request_of(message: Any) -> Any:
    reference = getattr(message, "request", None)
    return reference() if reference is not None else None


def _runs(request: Any) -> bool:
    """Return whether a request is in the pool, and its task not cancelled."""
    return request._apply_result is not None and not request._already_cancelled

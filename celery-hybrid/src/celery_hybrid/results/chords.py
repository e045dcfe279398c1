"""Chords by events: their parts are counted in a queue, and the last one starts the body.

Whoever ends a task of a chord's header puts a part into the queue ``celery.chords``: its state and result, and the
body to start. One worker of the deployment, chosen by RabbitMQ (single active consumer,
https://www.rabbitmq.com/docs/consumers#single-active-consumer), takes the parts and counts them, without
acknowledging any before the body has been sent. So the queue is the durable count: when that worker goes away, the
next one gets everything again. There is one queue, however many chords there are.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import amqp
from celery import states
from celery._state import _task_stack
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import allow_join_result, result_from_tuple
from kombu.exceptions import OperationalError

from celery_hybrid.errors import RecordRefusedError, ResultStoreError
from celery_hybrid.names import CHORDS_QUEUE
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.receiver import Receiver
from celery_hybrid.rabbitmq.records import CHORD_GROWTH, CHORD_PART, CHORD_SHAPE, CHORD_SIZE, Record
from celery_hybrid.results.content import Meta

logger = logging.getLogger(__name__)

CHORDS = "parts of chords"

_SWEEP_SECONDS = 60.0
_RETRY_SECONDS = 2.0


@dataclass
class Chord:
    """What is known of one chord.

    Attributes:
        parts: the first part of each task of the header, by its id, in the order of arrival.
        size: number of tasks in the header; None as long as it is not known, because the header is a generator.
        growth: tasks that were added while it ran.
        shape: the header's results as a tuple, when some of them are groups themselves.
        tags: what has to be acknowledged in the end.
        newest: seconds since the epoch of the newest message.
    """

    parts: dict[str, Record] = field(default_factory=dict)
    size: int | None = None
    growth: int = 0
    shape: Any = None
    tags: list[int] = field(default_factory=list)
    newest: int = 0

    def add(self, record: Record, meta: Callable[[Record], Meta]) -> None:
        """Take one message into account."""
        self.newest = max(self.newest, record.timestamp)
        if record.kind == CHORD_PART:
            self.parts.setdefault(record.id, record)
        elif record.kind == CHORD_SIZE:
            self.size = int(meta(record)["result"])
        elif record.kind == CHORD_GROWTH:
            self.growth += 1
        elif record.kind == CHORD_SHAPE:
            self.shape = meta(record)["result"]

    @property
    def complete(self) -> bool:
        """Whether every task of the header has ended."""
        return self.size is not None and bool(self.parts) and len(self.parts) >= self.size + self.growth


class ChordKeeper(Receiver):
    """Counts the parts of all chords of an application's workers, and starts the bodies.

    Args:
        servers: where.
        options: timeouts.
        prepare: checks the topology on a new connection.
        app: the Celery application.
        expires: seconds after which an incomplete chord is given up; None for never.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        prepare: Callable[[amqp.Connection], None],
        app: weakref.ref[Any],
        expires: float | None,
    ) -> None:
        super().__init__(servers, options, prepare, CHORDS, "No chord can be completed by this worker now.")
        self._app = app
        self._expires = expires
        self._chords: dict[str, Chord] = {}
        self._complete: list[str] = []
        self._sweep_at = self._retry_at = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """How many chords and parts this worker holds; none when another worker counts."""
        chords = list(self._chords.values())
        return {"chords": len(chords), "parts": sum(len(chord.parts) for chord in chords)}

    def _enter(self, channel: amqp.Channel) -> None:
        # What an earlier connection has brought comes again.
        self._chords.clear()
        self._complete.clear()
        channel.basic_consume(CHORDS_QUEUE, callback=self._received)

    def _received(self, message: amqp.Message) -> None:
        record = Record.from_message(message)
        chord = self._chords.setdefault(record.group, Chord())
        chord.tags.append(message.delivery_tag)
        try:
            chord.add(record, self._decode)
        except (RecordRefusedError, KeyError, TypeError, ValueError) as exc:
            logger.error("A %s of chord %s is refused: %s.", record.kind, record.group, exc)
            return
        if chord.complete and record.group not in self._complete:
            self._complete.append(record.group)
            self._finish_complete()

    def _idle(self) -> None:
        now = time.monotonic()
        if self._complete and now >= self._retry_at:
            self._finish_complete()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_SECONDS
            self._give_up_old()

    def _finish_complete(self) -> None:
        app = self._app()
        while self._complete and app is not None:
            group = self._complete[0]
            try:
                self._finish(app, group, self._chords[group])
            except (OperationalError, ResultStoreError, OSError) as exc:
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                logger.warning("The body of chord %s is sent later: %s", group, exc)
                return
            self._complete.pop(0)
            self._forget(group)

    def _forget(self, group: str) -> None:
        assert self._channel is not None  # noqa: S101 - called while receiving
        for tag in self._chords.pop(group).tags:
            self._channel.basic_ack(tag)

    def _give_up_old(self) -> None:
        if not self._expires:
            return
        limit = time.time() - self._expires
        for group in [group for group, chord in self._chords.items() if chord.newest < limit]:
            chord = self._chords[group]
            logger.error(
                "Chord %s is given up: %d of %s tasks of its header have ended within result_expires.",
                *(group, len(chord.parts), "unknown" if chord.size is None else chord.size + chord.growth),
            )
            self._forget(group)

    def _decode(self, record: Record) -> Meta:
        app = self._app()
        if app is None:
            raise RecordRefusedError("the application is gone")
        return dict(app.backend.decode_record(record))

    def _finish(self, app: Any, group: str, chord: Chord) -> None:
        """Start the body, or tell it why it never will be.

        Raises:
            OperationalError: the broker is away.
            ResultStoreError: RabbitMQ is away.
        """
        parts = [self._decode(record) for record in chord.parts.values()]
        origin = parts[-1]["origin"]
        # The header's own order; tasks that were added come behind, as they arrived.
        parts.sort(key=lambda part: float("inf") if part["index"] is None else part["index"])
        body = maybe_signature(parts[0]["chord"], app=app)
        with _within(app, origin):
            self._send(app, group, chord, parts, body)

    def _send(self, app: Any, group: str, chord: Chord, parts: list[Meta], body: Any) -> None:
        try:
            if chord.shape is not None:
                results = self._joined(app, chord.shape)
            else:
                results = [self._value(app, part) for part in parts]
        except ChordError as exc:
            logger.error("Chord %s has failed: %s", group, exc)
            app.backend.chord_error_from_stack(body, exc)
            return
        except (OperationalError, ResultStoreError, OSError):
            raise
        except Exception as exc:
            logger.exception("The results of chord %s could not be joined.", group)
            app.backend.chord_error_from_stack(body, ChordError(f"Join error: {exc!r}"))
            return
        try:
            body.delay(results)
        except (OperationalError, ResultStoreError, OSError):
            raise
        except Exception as exc:
            logger.exception("The body of chord %s could not be sent.", group)
            app.backend.chord_error_from_stack(body, ChordError(f"Callback error: {exc!r}"))

    @staticmethod
    def _joined(app: Any, shape: Any) -> Any:
        result = result_from_tuple(shape, app)
        # All its tasks have ended, so there is nothing to wait for but the reading.
        result.on_ready()
        join = result.join_native if result.supports_native_join else result.join
        with allow_join_result():
            return join(timeout=app.conf.result_chord_join_timeout, propagate=True)

    @staticmethod
    def _value(app: Any, part: Meta) -> Any:
        value = part["result"]
        if part["status"] in states.EXCEPTION_STATES:
            value = app.backend.exception_to_python(value)
        if part["status"] in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {part['task_id']} raised {value!r}")
            error.__cause__ = value if isinstance(value, BaseException) else None
            raise error
        return value


@contextlib.contextmanager
def _within(app: Any, origin: dict[str, Any]) -> Iterator[None]:
    """Send tasks as if from the one that has ended last: it is the parent of the body, with its root, priority, stamps.

    With Celery's Redis backend it is that task which starts the body.
    """
    task = app.tasks["celery.chord"]
    task.push_request(called_directly=False, children=[], **origin)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()

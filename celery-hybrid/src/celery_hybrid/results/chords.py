"""Chords by events: what a header's tasks give is counted in the broker, and the last one starts the body.

This is the side of the result backend: what a part is, what the body gets, and what it is told when it will never be
started. Where parts are counted is the business of a :class:`~celery_hybrid.broker.chord_counter.Counter`.

The main process of a worker only counts. Composing a body runs code of the application (errbacks, routers, an
``apply_async`` of one's own), so it leaves that to a task, :data:`~celery_hybrid.names.FINISH_CHORD`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from celery import states
from celery._state import _task_stack, get_current_task
from celery.app.task import Context
from celery.canvas import group, maybe_signature
from celery.exceptions import ChordError
from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError
from kombu.serialization import dumps, loads, prepare_accept_content

from celery_hybrid.broker.chord_counter import (
    BODY,
    BY_ID,
    COMPLETE,
    GONE,
    MOST_INLINE,
    OVER,
    Chord,
    Counter,
    Part,
    RedisCounter,
)
from celery_hybrid.errors import RecordRefusedError, RecordTooLargeError, ResultStoreUnreachableError
from celery_hybrid.names import FINISH_CHORD
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.results.content import Codec, Meta

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 10.0
#: Seconds that the main process of a worker, or its thread, waits for Redis.
BRIEF, _THREAD_PATIENCE = 1.0, 10.0
#: Seconds in which a result that is in no stream yet may come from the outbox of its host.
_OUTBOX_PATIENCE = 3600
_LOOKUP_SECONDS = 5.0
#: Seconds before its count in which the result of a task has been stored, unless Redis was away or a clock is wrong.
_STORED_BEFORE_COUNTED = 600
#: A body that could not be sent so often fails.
_MOST_TRIES = 5
#: Characters of an error; a longer one might be larger than a record may be.
_MOST_OF_ERROR = 64 * 1024


class _LaterError(Exception):
    """The chord cannot be finished now; the next sweep tries again."""


class _MissingError(_LaterError):
    """A server, or a result that is in another host's outbox, is away for now: the body is not at fault."""


class ChordBackend(Protocol):
    """What chords need of a result backend, which is :class:`celery_hybrid.results.backend.AMQPBackend`."""

    app: Any
    #: What all backends of the process share.
    store: Any
    #: Encodes what is stored.
    codec: Codec

    def store_result(self, task_id: str, result: Any, state: str) -> Any:
        """Store a result."""

    def encode_result(self, result: Any, state: str) -> Any:
        """Return a result so that the serializer takes it."""

    def decode_record(self, record: Record) -> Meta:
        """Return the meta of a record."""

    def exception_to_python(self, exc: Any) -> Any:
        """Return the exception that was stored as data."""

    def chord_error_from_stack(self, callback: Any, exc: BaseException) -> Any:
        """Fail the body of a chord, and call its errbacks."""

    def count_as_before(self, request: Any, state: str, result: Any) -> bool:
        """Count a part as earlier versions did, and return whether the chord is one of theirs."""


class Chords:
    """The chords of an application, as seen by one of its backends.

    Args:
        backend: encodes and stores results.
        counter: where parts are counted.
    """

    def __init__(self, backend: ChordBackend, counter: Counter) -> None:
        self.backend = backend
        self.counter = counter
        self._app = backend.app

    # A task of a header has ended

    def part_ended(self, request: Any, status: str, result: Any) -> None:
        """Count the end of a task; when it was the last one, send the body.

        Raises:
            kombu.exceptions.OperationalError: this is not a task of a worker, and the broker is away.
        """
        self._part_ended(request, self._part(request, status, result), result)

    def _part_ended(self, request: Any, part: Part, result: Any) -> None:
        try:
            answer = self._count(request, part)
        except OperationalError:
            raise
        except Exception as exc:
            # The key of the chord is something else, or this user has no right to it.
            logger.exception("The end of task %s cannot be counted for its chord %s.", request.id, request.group)
            self._fail(maybe_signature(request.chord, app=self._app), _refused(exc))
            return
        if answer == COMPLETE:
            self.finish(request.group, request.chord, part)
        elif answer == GONE and not self.backend.count_as_before(request, part.status, result):
            self._lost(request.group, request.chord)

    def _part(self, request: Any, status: str, result: Any) -> Part:
        encoded = self.backend.encode_result(result, status)
        part = self.encoded(request.id, request.group_index, status, encoded)
        if status not in states.EXCEPTION_STATES or len(part.body) <= _MOST_OF_ERROR:
            return part
        # It becomes the text of an error, which has to fit into a record.
        text = f"{result}"[: _MOST_OF_ERROR // 4]
        if isinstance(encoded, dict) and "exc_type" in encoded:
            short = {**encoded, "exc_message": [text]}
        else:
            short = self.backend.encode_result(RuntimeError(text), status)
        return self.encoded(request.id, request.group_index, status, short)

    def encoded(self, task_id: str, index: int | None, status: str, result: Any) -> Part:
        """Return the part of a task, given its encoded result."""
        record = self.backend.codec.encode(task_id, RESULT, {"status": status, "result": result}, status=status)
        parts = (record.body, record.content_type, record.content_encoding, record.compression)
        return Part(task_id, index, status, *parts)

    def _is_ignored(self, request: Any) -> bool:
        task = self._app.tasks.get(request.task)
        return bool(request.ignore_result or getattr(task, "ignore_result", False))

    def _count(self, request: Any, part: Part) -> str:
        stored = part.status not in states.EXCEPTION_STATES and not self._is_ignored(request)
        by_id = Part(part.task_id, part.index, part.status, by_id=True)
        counted = by_id if stored and len(part.body) > MOST_INLINE else part
        body = b""
        while True:
            answer = self.counter.count(
                request.group, counted, origin_of(request), body, bounded=stored and counted is not by_id
            )
            if answer == BODY:
                body = self.packed(request.chord)
            elif answer == BY_ID:
                counted = by_id
            else:
                return answer

    def packed(self, body: Any) -> bytes:
        """Return the signature of a body as Redis keeps it."""
        content_type, encoding, data = dumps(dict(body), serializer=self._app.conf.task_serializer)
        data = data.encode() if isinstance(data, str) else data
        return json.dumps([content_type, encoding]).encode() + b"\n" + data

    def _unpacked(self, data: bytes) -> Any:
        head, _, body = data.partition(b"\n")
        content_type, encoding = json.loads(head)
        return loads(body, content_type, encoding, accept=prepare_accept_content(self._app.conf.accept_content))

    # All of them have

    def finish(self, group_id: str, body: Any = None, own: Part | None = None, inherit: bool = False) -> None:
        """Send the body of a chord that is complete, or tell it why it never will be sent.

        Args:
            group_id: of the header.
            body: its signature; None takes what was kept of it.
            own: the part that was counted last, in full.
            inherit: do it as if by the task that was counted last: the body inherits from it.
        """
        try:
            chord = self.counter.load(group_id)
        except OperationalError:
            raise
        except Exception as exc:
            if body is None:
                raise
            self._fail(maybe_signature(body, app=self._app), _refused(exc))
            return
        if chord.state == GONE and body is not None:
            self._lost(group_id, body)
        if chord.state not in {COMPLETE, OVER}:
            return
        within = _within(self._app, chord.origin) if inherit and chord.origin else contextlib.nullcontext()
        try:
            with within:
                signature = self._body(group_id, chord) if body is None else maybe_signature(body, app=self._app)
                if chord.tries > _MOST_TRIES:
                    self._give_up(group_id, signature, chord.tries)
                else:
                    self._finish(group_id, chord, signature, own)
        except _LaterError as exc:
            logger.warning("Retrying the body of chord %s later: %s", group_id, exc)
            if isinstance(exc, _MissingError):
                with contextlib.suppress(OperationalError):
                    self.counter.excuse(group_id)

    def _body(self, group_id: str, chord: Chord) -> Any:
        try:
            return maybe_signature(self._unpacked(chord.body), app=self._app)
        except Exception:
            if chord.tries > _MOST_TRIES:
                self.counter.finish(group_id, [])
            raise

    def _finish(self, group_id: str, chord: Chord, body: Any, own: Part | None) -> None:
        try:
            results = self._results(chord, own)
        except _LaterError:
            raise
        except ChordError as exc:
            self._finish_badly(group_id, chord, body, exc)
            return
        except Exception as exc:
            logger.exception("The results of chord %s could not be joined.", group_id)
            self._finish_badly(group_id, chord, body, ChordError(f"Join error: {exc!r}"))
            return
        with self.counter.capture() as commands:
            try:
                body.delay(results)
            except OperationalError as exc:
                raise _MissingError(repr(exc)) from exc
            except Exception as exc:
                logger.exception("The body of chord %s could not be sent.", group_id)
                error = ChordError(f"Callback error: {exc!r}")
            else:
                error = None
        if error is not None:
            self._finish_badly(group_id, chord, body, error)
        else:
            self._send(group_id, commands)

    def _finish_badly(self, group_id: str, chord: Chord, body: Any, error: ChordError) -> None:
        logger.error("Chord %s has failed: %s", group_id, _shortened(error))
        _leave_out(body, [errback for part in chord.parts.values() for errback in part.called])
        with self.counter.capture() as commands:
            try:
                self._fail(body, error)
            except (OperationalError, ResultStoreUnreachableError) as exc:
                raise _MissingError(repr(exc)) from exc
        self._send(group_id, commands)

    def _give_up(self, group_id: str, body: Any, tries: int) -> None:
        error = ChordError(f"Callback error: the body could not be sent, and was not in {tries - 1} attempts")
        logger.error("Chord %s has failed: %s. Its errbacks are not called.", group_id, error)
        for signature in leaves(body):
            self.backend.store_result(signature.id, error, states.FAILURE)
        self.counter.finish(group_id, [])

    def _send(self, group_id: str, commands: list[Any]) -> None:
        try:
            self.counter.finish(group_id, commands)
        except OperationalError as exc:
            raise _MissingError(repr(exc)) from exc
        except Exception as exc:
            # A queue that is not a list, or one that this user may not write to.
            raise _LaterError(f"Redis refuses it: {exc}") from exc

    def _fail(self, body: Any, error: ChordError) -> None:
        """Store the failure of a body, and of the chord that it is a part of itself."""
        if len(str(error)) > _MOST_OF_ERROR:
            cause, error = error.__cause__, ChordError(_shortened(error))
            error.__cause__ = cause
        try:
            self._store_error(body, error)
        except RecordTooLargeError:
            error = ChordError(f"{_shortened(error)[:1000]} (shortened, as RabbitMQ does not take more)")
            self._store_error(body, error)
        for signature in leaves(body):
            options = signature.options
            if options.get("chord") and options.get("group_id") and signature.id:
                # Celery leaves the outer chord waiting.
                request = Context(dict(signature), **options)
                request.id, request.group = signature.id, options["group_id"]
                called = [_errback(errback) for errback in maybe_list(options.get("link_error")) or ()]
                part = replace(self._part(request, states.FAILURE, error), called=called)
                self._part_ended(request, part, error)

    def _store_error(self, body: Any, error: ChordError) -> None:
        try:
            raise error
        except ChordError:
            # Celery takes the traceback from here.
            self.backend.chord_error_from_stack(body, error)

    def _lost(self, group_id: str, body: Any) -> None:
        """Tell the body of a chord that Redis knows nothing of, unless it has been sent long ago."""
        body = maybe_signature(body, app=self._app)
        try:
            stored = self.backend.store.results([each.id for each in leaves(body) if each.id], timeout=_LOOKUP_SECONDS)
        except ResultStoreUnreachableError:
            stored = {}  # a success that is there stays what counts
        if stored:
            return
        error = ChordError(
            "Join error: Redis has no count of this chord: no task of it has ended within result_expires, or Redis "
            "has lost its data"
        )
        logger.error("Chord %s has failed: %s", group_id, error)
        self._fail(body, error)

    # What the body gets

    def _results(self, chord: Chord, own: Part | None) -> Any:
        if chord.state == OVER:
            size = "an unknown number" if chord.size is None else chord.size
            raise ChordError(f"Join error: only {len(chord.parts)} of {size} tasks of the header have ended in time")
        parts = {**chord.parts, own.task_id: own} if own is not None and own.task_id in chord.parts else chord.parts
        if chord.shape is None:
            # The header's own order; tasks that were added have the place of the one that added them.
            ordered = sorted(
                parts.values(),
                key=lambda part: (float("inf") if part.index is None else part.index, part.task_id in chord.added),
            )
            metas = self._metas([part.task_id for part in ordered], parts, chord)
            return [_value(self.backend, part.task_id, metas[part.task_id]) for part in ordered]
        metas = self._metas(list(task_ids(chord.shape)), parts, chord)
        return _shaped(chord.shape, lambda task_id: _propagated(self.backend, metas[task_id]))

    def _metas(self, task_ids: list[str], parts: dict[str, Part], chord: Chord) -> dict[str, Any]:
        metas: dict[str, Any] = {}
        missing = []
        for task_id in task_ids:
            part = parts.get(task_id)
            if part is None or (part.by_id and not part.body):
                missing.append(task_id)
            else:
                metas[task_id] = self._decoded(part)
        if missing:
            metas |= self._stored(missing, chord)
        return metas

    def _decoded(self, part: Part) -> Any:
        parts = (part.content_type, part.content_encoding, part.compression)
        record = Record(part.task_id, RESULT, RESULT, part.status, "", part.body, *parts)
        try:
            return self.backend.decode_record(record)
        except RecordRefusedError as exc:
            self.backend.store.refusals.refuse(record, exc)
            raise ChordError(f"Join error: the result of task {part.task_id} is refused: {exc}") from None

    def _stored(self, task_ids: list[str], chord: Chord) -> dict[str, Any]:
        lately = chord.open_for + _STORED_BEFORE_COUNTED
        try:
            records = self.backend.store.results_of(task_ids, lately, timeout=_LOOKUP_SECONDS)
        except ResultStoreUnreachableError as exc:
            raise _MissingError(str(exc)) from exc
        missing = [task_id for task_id in task_ids if task_id not in records]
        if missing and chord.age < _OUTBOX_PATIENCE:
            raise _MissingError(f"the result of task {missing[0]} is not in RabbitMQ yet")
        if missing:
            raise ChordError(f"Join error: the result of task {missing[0]} is not in RabbitMQ")
        found = {}
        for task_id, record in records.items():
            try:
                found[task_id] = self.backend.decode_record(record)
            except RecordRefusedError as exc:
                self.backend.store.refusals.refuse(record, exc)
                raise ChordError(f"Join error: the result of task {task_id} is refused: {exc}") from None
        return found


class MainProcessChords(Chords):
    """The same in the main process of a worker, which only counts, and never waits."""

    counter: RedisCounter

    def __init__(self, backend: ChordBackend, counter: RedisCounter) -> None:
        super().__init__(backend, counter)

    def part_ended(self, request: Any, status: str, result: Any) -> None:
        """Count the end of a task, now or soon."""
        self.backend.store.chords.take(request, self._part(request, status, result), self)

    def leave_abandoned(self) -> None:
        """Let tasks finish the chords that no process is finishing.

        Raises:
            kombu.exceptions.OperationalError: Redis does not answer in time.
        """
        for group_id, origin in self.counter.abandoned():
            logger.warning(
                "Chord %s is complete or has timed out, and no process is finishing it; finishing it.", group_id
            )
            self.leave(group_id, origin=origin)

    def close(self) -> None:
        """End the connection."""
        self.counter.close()

    def count_now(self, request: Any, part: Part) -> None:
        """Count the end of a task.

        Raises:
            kombu.exceptions.OperationalError: Redis does not answer immediately.
        """
        try:
            answer = self._count(request, part)
        except OperationalError:
            raise
        except Exception:
            # The task finds the same, and tells the body.
            logger.exception("The end of task %s cannot be counted for its chord %s.", request.id, request.group)
            answer = GONE
        if answer in {COMPLETE, GONE}:
            self.leave(request.group, dict(request.chord) if answer == GONE else None, origin_of(request))

    def leave(self, group_id: str, body: Any = None, origin: Mapping[str, Any] | None = None) -> None:
        """Let a task finish a chord.

        Args:
            group_id: of its header.
            body: its signature, when Redis does not have it.
            origin: of the task that was counted last: it goes where that one came from, as other workers may be those
                of another application.

        Raises:
            kombu.exceptions.OperationalError: Redis does not answer in time.
        """
        info = (origin or {}).get("delivery_info") or {}
        exchange, key = info.get("exchange"), info.get("routing_key")
        route = {"exchange": exchange, "routing_key": key} if exchange else {"queue": key or own_queue(self._app)}
        self.counter.send(self._app.tasks[FINISH_CHORD], (group_id, body), route)


class ChordSweeper:
    """Finds, in a thread of a worker's main process, the chords that no process is finishing.

    Args:
        app: returns the Celery application, or None when it is gone.
    """

    def __init__(self, app: Callable[[], Any]) -> None:
        self._app = app
        self._waiting: deque[tuple[Any, Part]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._chords: MainProcessChords | None = None
        #: What :meth:`RedisCounter.unfinished` returned last; empty while Redis does not answer.
        self.unfinished: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to look, where the broker is Redis."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="celery-hybrid chords", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping = True
        self._wake.set()

    def take(self, request: Any, part: Part, chords: MainProcessChords) -> None:
        """Count the end of a task now, or in the thread when Redis does not answer immediately."""
        if not self._waiting:
            try:
                chords.count_now(request, part)
            except OperationalError as exc:
                logger.warning("Retrying to count the end of task %s later: %s", request.id, exc)
            else:
                return
        self._waiting.append((request, part))
        self.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_SWEEP_SECONDS)
            self._wake.clear()
            app = self._app()
            if app is None or self._stopping:
                return
            try:
                self._look(app)
            except Exception as exc:
                self.unfinished = {}
                logger.log(
                    logging.DEBUG if isinstance(exc, OperationalError) else logging.ERROR,
                    *("The sweep of chords failed; retrying later: %r", exc),
                )
            del app
        if self._chords is not None:
            self._chords.close()

    def _look(self, app: Any) -> None:
        chords = self._chords
        if chords is None:
            backend = app.backend
            if not backend.counts_in_redis:
                return
            chords = self._chords = MainProcessChords(backend, RedisCounter(app, backend.expires, _THREAD_PATIENCE))
        while self._waiting:
            chords.count_now(*self._waiting[0])
            self._waiting.popleft()
        chords.leave_abandoned()
        self.unfinished = chords.counter.unfinished()


def register(app: Any) -> None:
    """Give an application the task that finishes a chord."""
    if FINISH_CHORD in app._tasks:
        return

    def finish_chord(group_id: str, body: Any = None) -> None:
        """Send the body of a chord."""
        chords = app.backend.chords
        if chords is not None:
            chords.finish(group_id, body, inherit=True)

    app.task(name=FINISH_CHORD, shared=False, acks_late=True, ignore_result=True)(finish_chord)


def own_queue(app: Any) -> str | None:
    """Return a queue that this worker consumes, the default one if it does."""
    consumed = list(app.amqp.queues.consume_from)
    default = app.conf.task_default_queue
    return default if default in consumed or not consumed else str(min(consumed))


def leaves(body: Any) -> Iterator[Any]:
    """Yield the signatures whose results are those of a chord's body: itself, or the tasks of a group."""
    if isinstance(body, group):
        for task in body.tasks:
            yield from leaves(task)
    else:
        yield body


def origin_of(request: Any) -> dict[str, Any]:
    """Return what the body of a chord inherits from the task that ends it, and where that task came from."""
    # What stands for a task that will never run, behind one that has failed, has none of its own.
    info = request.delivery_info or getattr(get_current_task(), "request", Context()).delivery_info or {}
    return {
        "id": request.id,
        "root_id": request.root_id or request.id,
        "reply_to": request.reply_to,
        "delivery_info": {name: info.get(name) for name in ("priority", "exchange", "routing_key")},
        "stamped_headers": request.stamped_headers,
        "stamps": request.stamps,
    }


def _errback(signature: Any) -> list[Any]:
    return [signature["task"], list(signature["args"] or ()), signature["kwargs"] or {}]


def _leave_out(body: Any, called: list[Any]) -> None:
    """Take from a body the errbacks that an inner chord has called: Celery links those of a chord to both."""
    for signature in leaves(body) if called else ():
        errbacks = maybe_list(signature.options.get("link_error")) or ()
        signature.options["link_error"] = [each for each in errbacks if _errback(each) not in called]


def _refused(error: Exception) -> ChordError:
    # Not its repr(), which redis-py makes without what Redis has said.
    return ChordError(f"Join error: Redis does not count this chord: {error}")


def _shortened(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= _MOST_OF_ERROR else f"{text[:_MOST_OF_ERROR]}… ({len(text)} characters)"


def _value(backend: Any, task_id: str, meta: Any) -> Any:
    value = meta["result"]
    if meta["status"] in states.EXCEPTION_STATES:
        value = backend.exception_to_python(value)
    if meta["status"] in states.PROPAGATE_STATES:
        error = ChordError(f"Dependency {task_id} raised {value!r}")
        error.__cause__ = value if isinstance(value, BaseException) else None
        raise error
    return value


def _propagated(backend: Any, meta: Any) -> Any:
    """Return a value as ``GroupResult.join_native`` would: the exception of a task is raised as it is."""
    value = meta["result"]
    if meta["status"] in states.EXCEPTION_STATES:
        value = backend.exception_to_python(value)
    if meta["status"] in states.PROPAGATE_STATES:
        raise value if isinstance(value, BaseException) else ChordError(f"{value!r}")
    return value


def task_ids(shape: Any) -> Iterator[str]:
    """Return the ids of the tasks in what ``as_tuple()`` of a group's result gave."""
    task_id, children = _node(shape)
    if children is None:
        yield task_id
    else:
        for child in children:
            yield from task_ids(child)


def _shaped(shape: Any, value: Callable[[str], Any]) -> Any:
    task_id, children = _node(shape)
    return value(task_id) if children is None else [_shaped(child, value) for child in children]


def _node(shape: Any) -> tuple[str, Any]:
    """Return id and children of what ``as_tuple()`` of a result gave; only a group has children."""
    own, children = shape
    return (own[0] if isinstance(own, (list, tuple)) else own), children


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

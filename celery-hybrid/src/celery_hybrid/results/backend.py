"""The result backend ``amqp://`` and ``amqps://``: what Celery asks for, in terms of the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from celery import states
from celery._state import task_join_will_block
from celery.app.task import Context
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend
from celery.exceptions import BackendGetMetaError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, result_from_tuple
from celery.utils.functional import LRUCache, _regen

from celery_hybrid.broker.chord_counter import GONE, RedisCounter
from celery_hybrid.delivery.failure import failure_instead
from celery_hybrid.errors import (
    RecordRefusedError,
    RecordTooLargeError,
    ResultStoreError,
    ResultStoreUnreachableError,
    TopologyError,
)
from celery_hybrid.masking import masked
from celery_hybrid.names import id_of
from celery_hybrid.processes import must_not_wait
from celery_hybrid.rabbitmq.options import SETTING, Options
from celery_hybrid.rabbitmq.records import CHORD_GROWTH, CHORD_PART, GROUP, RESULT, Record
from celery_hybrid.results.chords import BRIEF, Chords, MainProcessChords, origin_of, register, task_ids
from celery_hybrid.results.content import Codec, Meta
from celery_hybrid.results.store import Store, on_fork, store_of
from celery_hybrid.results.waiting import SHORTEST_LOOK, ResultConsumer

logger = logging.getLogger(__name__)

# Seconds that a look-up may hold the event loop of a worker's main process.
_LOOP_PATIENCE = 1.0

# RabbitMQ takes names of up to 255 bytes.
_LONGEST_ADDRESS = 200


class AMQPBackend(AsyncBackendMixin, Backend):
    """Keeps results in RabbitMQ, over connections of its own.

    Args:
        app: the Celery application.
        url: ``amqp://user:password@host:5672/vhost`` or ``amqps://…``; several hosts of a cluster separated by ``;``.
            ``result_backend`` of the application when it is not given.
        expires: seconds or a timedelta; ``result_expires`` of the application when it is not given.

    Raises:
        OptionError: the URL or an option is wrong.
    """

    #: What the process shares; the double for tests has its own.
    store_class = Store
    #: A result is there for everybody, also after a restart of RabbitMQ.
    persistent = True
    #: RabbitMQ deletes what is too old, readers do not see it before.
    supports_autoexpire = True
    supports_native_join = True
    #: A body is kept as it is; the compression is named in a header.
    supports_result_compression = True

    def __init__(self, app: Any, url: str | None = None, expires: Any = None, **kwargs: Any) -> None:
        super().__init__(app, url=url or app.conf.result_backend, expires=expires, **kwargs)
        self.options = Options.from_mapping(app.conf.get(SETTING))
        # Celery before 5.7 leaves it to the backend.
        compression = getattr(self, "compression", None) or app.conf.get("result_compression")
        self._codec = Codec(self.serializer, compression, self.accept)
        self._store = store_of(app, self.url, self.options, self.expires, self.store_class)
        self._client_of_chord: str | None = None
        self._chords: dict[bool, Chords] = {}
        # Of chords whose header is about to be sent.
        self._header_sizes = LRUCache(limit=1000)
        register(app)
        self.result_consumer = ResultConsumer(self, app, self.accept, self._pending_results, self._pending_messages)
        self._store.mailbox.join(self.result_consumer)
        on_fork(self)

    @property
    def codec(self) -> Codec:
        """Encodes and decodes what is stored."""
        return self._codec

    @property
    def store(self) -> Store:
        """What all backends of this process share."""
        return self._store

    def after_fork(self) -> None:
        """Begin again in a child: what the parent waits for is not the child's."""
        self._chords.clear()
        for waiting in self._pending_results:
            waiting.clear()
        self._pending_messages.clear()
        self._pending_messages.total = 0
        self.result_consumer._after_fork()
        self._store.mailbox.join(self.result_consumer)

    def as_uri(self, include_password: bool = False) -> str:
        """Return the URL, every password in it hidden unless it is asked for."""
        return str(self.url) if include_password else masked(self.url)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        # A pickled result lies in caches and databases. The URL, which holds a password, goes with it only when it is
        # not the one that the application has anyway.
        own = {"url": None if self.url == self.app.conf.result_backend else self.url, "expires": self.expires}
        return super().__reduce__(args, {**own, **(kwargs or {})})

    # Sending

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:  # noqa: ARG002 - the broker's, not ours
        """Make sure, before a task is sent, that its result can be pushed to this process.

        Not in the tasks of a worker that must not wait for other tasks: the steps of a chain are sent from there, and
        each child of a pool would have a thread, a connection and a queue that is never used. Where a task is allowed
        to wait, results are read from the archive, or pushed if it sent them while it was allowed to.

        RabbitMQ may be down: then the task is sent all the same, and its result is found in the archive.

        Raises:
            IdError: results cannot be stored under that id.
        """
        name = id_of(task_id)
        if not task_join_will_block() and self._store.replies.start():
            self._store.mailbox.sent(name)
        return {}

    # Writing

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        task_id = id_of(task_id)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        pushed = state != states.STARTED or self.options.push_started
        reply_to = (_address(request) or self._client_of_chord) if pushed else None
        try:
            self._store.write(self._record(meta, request), reply_to)
        except RecordTooLargeError as exc:
            self._store_less(meta, request, reply_to, exc)
        return result

    def _record(self, meta: Meta, request: Any) -> Record:
        run, retries = _run_of(request)
        record = self._codec.encode(meta["task_id"], RESULT, meta, status=meta["status"])
        return replace(record, run=run, retries=retries)

    def _store_less(self, meta: Meta, request: Any, reply_to: str | None, too_large: RecordTooLargeError) -> None:
        """Store what is left of a record without what makes it too large: every task gets a final state.

        Raises:
            RecordTooLargeError: the result itself is too large; Celery makes it the failure of the task.
        """
        name = meta["task_id"]
        if meta.get("args") is not None or meta.get("kwargs") is not None:
            meta = {**meta, "args": None, "kwargs": None}
            logger.warning("The record of task %s is stored without the task's arguments: %s", name, too_large)
            try:
                self._store.write(self._record(meta, request), reply_to)
            except RecordTooLargeError as exc:
                too_large = exc
            else:
                return
        instead = (
            None if meta["status"] == states.SUCCESS else failure_instead(self._record(meta, request), str(too_large))
        )
        if instead is None:
            raise too_large
        logger.error("The record of task %s is stored without its exception: %s", name, too_large)
        self._store.write(instead, reply_to)

    def _forget(self, task_id: str) -> None:
        task_id = id_of(task_id)
        self._store.mailbox.forget(task_id)
        self._store.write(Record.tombstone(task_id, RESULT))

    def _save_group(self, group_id: str, result: Any) -> Any:
        self._store.write(self._codec.encode(id_of(group_id), GROUP, {"result": result.as_tuple()}))
        return result

    def _delete_group(self, group_id: str) -> None:
        self._store.write(Record.tombstone(id_of(group_id), GROUP))

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell ``result_backend_always_retry`` which errors pass: a record that is stored twice changes nothing."""
        return isinstance(exc, ResultStoreUnreachableError) or isinstance(exc.__cause__, ResultStoreUnreachableError)

    # Chords

    @property
    def counts_in_redis(self) -> bool:
        """Whether the broker is one that can count chords."""
        return str(self.app.connection_for_write().transport.driver_type) == "redis"

    @property
    def chords(self) -> Chords | None:
        """The chords of this application, or None when its broker cannot count them."""
        brief = must_not_wait()
        chords = self._chords.get(brief)
        if chords is None and self.counts_in_redis:
            counter = RedisCounter(self.app, self.expires, BRIEF if brief else None)
            chords = self._chords[brief] = (MainProcessChords if brief else Chords)(self, counter)
        return chords

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Begin a chord, and note the shape of its results, which matters when its header holds groups.

        Raises:
            kombu.exceptions.OperationalError: the broker is away; nothing has begun.
        """
        chords = self.chords
        if chords is None:
            super().apply_chord(header_result_args, body, **kwargs)
            return
        shape = None
        # A generator must not be run through beforehand.
        if not isinstance(header_result_args[1], _regen):
            header = self.app.GroupResult(*header_result_args)
            if any(isinstance(result, GroupResult) for result in header.results):
                shape = header.as_tuple()
                self._header_sizes[header_result_args[0]] = sum(1 for _ in task_ids(shape))
        chords.counter.begin(header_result_args[0], shape)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Tell how many tasks the header of a chord has.

        Celery 5.5 counts a group at the end of a chain as one task.
        """
        chords = self.chords
        if chords is not None:
            chords.counter.resize(group_id, max(chord_size, self._header_sizes.pop(group_id, 0)))

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Tell that a running chord's header gets one task more (``Task.add_to_chord``)."""
        chords = self.chords
        if chords is None:
            super().add_to_chord(chord_id, result)
        elif chords.counter.grow(chord_id, result.id) == GONE:
            self._count_as_before(chord_id, result.id, CHORD_GROWTH, {"result": 1})

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Count the end of a task of a chord's header; behind the last one, send the body."""
        chords = self.chords
        if request.id and request.group and chords is not None:
            chords.part_ended(request, state, result)

    def count_as_before(self, request: Any, state: str, result: Any) -> bool:
        """Put the end of a task where earlier versions count, if that exists; return whether it does.

        A chord that an application of an earlier version has begun is not known in Redis.
        """
        meta = {
            "task_id": request.id,
            "status": state,
            "result": self.encode_result(result, state),
            "index": request.group_index,
            "origin": origin_of(request),
            "chord": request.chord,
        }
        return self._count_as_before(request.group, request.id, CHORD_PART, meta)

    def _count_as_before(self, group_id: str, record_id: str, kind: str, meta: Meta) -> bool:
        try:
            self._store.publisher.publish(replace(self._codec.encode(record_id, kind, meta), group=group_id))
        except TopologyError:
            return False
        except ResultStoreError as exc:
            logger.warning("RabbitMQ does not answer whether it counts chord %s: %s", group_id, exc)
            return False
        return True

    def chord_error_from_stack(self, callback: Any, exc: Exception | None = None) -> Any:
        """Store the failure of a chord's body, and push it to the client that waits for the body."""
        # Celery makes up a request for it, which has no reply_to.
        self._client_of_chord = callback.options.get("reply_to")
        try:
            return super().chord_error_from_stack(callback, exc)
        finally:
            self._client_of_chord = None

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        # Celery calls those that take a request here and now, and one that exits would take the process with it.
        for errback in request.errbacks:
            try:
                super()._call_task_errbacks(Context(vars(request), errbacks=[errback]), exc, traceback)
            except SystemExit as exit_:
                logger.error("Errback %r of task %s has called sys.exit(%r).", errback, request.id, exit_.code)

    def decode_record(self, record: Record) -> Meta:
        """Return what a record holds.

        Raises:
            RecordRefusedError: its content type is not accepted, or it cannot be decoded.
        """
        return self._codec.decode(record)

    # Reading

    # Results are cached by the id that was asked for; one that is forgotten as text must not be there as a UUID.

    def get_task_meta(self, task_id: Any, cache: bool = True) -> Any:
        """Return the meta of a task; its id may be a UUID object."""
        return super().get_task_meta(id_of(task_id), cache=cache)

    def forget(self, task_id: Any) -> None:
        """Forget the result of a task; its id may be a UUID object."""
        super().forget(id_of(task_id))

    def get_group_meta(self, group_id: Any, cache: bool = True) -> Any:
        """Return the meta of a group; its id may be a UUID object."""
        return super().get_group_meta(id_of(group_id), cache=cache)

    def delete_group(self, group_id: Any) -> Any:
        """Delete a group; its id may be a UUID object."""
        return super().delete_group(id_of(group_id))

    def meta_of(self, record: Record) -> Meta | None:
        """Return the meta in a record, or None when it is refused; that is logged and counted.

        A refused record of a task that has ended ends the waiting for it: its meta has the reason as an exception.
        """
        try:
            meta = self._codec.decode(record)
            if record.kind == RESULT:
                try:
                    return dict(self.meta_from_decoded(meta))
                except Exception as exc:
                    # It could be made to call any function.
                    raise RecordRefusedError(
                        f"its result is not an exception, as that of {record.status} has to be ({exc}). Use a state of "
                        "your own for a meta of your own"
                    ) from exc
        except RecordRefusedError as exc:
            self._store.refusals.refuse(record, exc)
            return _refused(record, exc)
        return meta

    def _get_task_meta_for(self, task_id: str) -> Meta:
        return self._meta(task_id) or {"status": states.PENDING, "result": None}

    def task_result_exists(self, task_id: str) -> bool:
        """Return whether anything is stored for a task."""
        return self._meta(task_id) is not None

    def _meta(self, task_id: str) -> Meta | None:
        asked, record = self.result_consumer.pushed_parent(task_id)
        if asked:
            return self.meta_of(record) if record is not None else None
        try:
            # The event loop of a worker asks when it has lost a child. Not to know is better than to stand still.
            record = self._store.result(id_of(task_id), timeout=_LOOP_PATIENCE if must_not_wait() else None)
        except ResultStoreError as exc:
            # The only error that worker_deduplicate_successful_tasks and the worker's main process expect here.
            raise BackendGetMetaError(str(exc), task_id=task_id) from exc
        return self.meta_of(record) if record is not None else None

    def _restore_group(self, group_id: str) -> Meta | None:
        record = self._store.archive.group(id_of(group_id))
        meta = self.meta_of(record) if record is not None else None
        return {**meta, "result": result_from_tuple(meta["result"], self.app)} if meta is not None else None

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,  # noqa: ARG002
        on_message: Callable[[Meta], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,  # noqa: N803 - Celery passes it by this name
    ) -> Iterator[tuple[str, Meta]]:
        """Yield id and meta of each task as it becomes ready.

        Args:
            task_ids: the ids.
            timeout: seconds; None waits indefinitely.
            interval: seconds between looks.
            no_ack: has no meaning here.
            on_message: called with each meta.
            on_interval: called after each look.
            max_iterations: give up without an error after so many looks.
            READY_STATES: what counts as ready.

        Raises:
            celery.exceptions.TimeoutError: not all were ready in time.
        """
        pause = 0.5 if interval is None else interval
        deadline = None if timeout is None else time.monotonic() + timeout
        # By the ids as the caller has written them.
        missing = {id_of(task_id): task_id for task_id in task_ids}
        looks = 0
        while missing:
            limit = None if deadline is None else max(SHORTEST_LOOK, deadline - time.monotonic())
            for name, meta in self._ready_of(missing, READY_STATES, limit):
                task_id = missing.pop(name)
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta
            looks += 1
            if not missing or (max_iterations and looks >= max_iterations):
                return
            remaining = pause if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise CeleryTimeoutError(f"The operation timed out after {timeout} s.")
            if on_interval is not None:
                on_interval()
            time.sleep(min(pause, remaining))

    def _ready_of(
        self, task_ids: Collection[str], ready_states: frozenset[str], timeout: float | None
    ) -> Iterator[tuple[str, Meta]]:
        unknown: list[str] = []
        for task_id in list(task_ids):
            try:
                meta = self._cache[task_id]
            except KeyError:
                unknown.append(task_id)
            else:
                yield task_id, meta
        if not unknown:
            return
        try:
            records = self._store.results(unknown, timeout=timeout)
        except ResultStoreUnreachableError:
            if timeout is None:
                raise
            return  # the next look may be in time
        for task_id, record in records.items():
            found = self.meta_of(record)
            if found is not None and found["status"] in ready_states:
                if found["status"] == states.SUCCESS:
                    self._cache[task_id] = found
                yield task_id, found


def _refused(record: Record, reason: RecordRefusedError) -> Meta | None:
    """Return what a reader sees of a refused record: nothing of one that only tells how the task goes on."""
    if record.kind != RESULT or not (record.ready or record.status in states.EXCEPTION_STATES):
        return None
    status = record.status if record.status in states.EXCEPTION_STATES else states.FAILURE
    error = RecordRefusedError(f"The stored result of task {record.id} is refused: {reason}.")
    return {"status": status, "result": error, "traceback": None, "children": [], "task_id": record.id}


def _address(request: Any) -> str | None:
    """Return the address of the client that waits for a request's result."""
    address = getattr(request, "reply_to", None)
    return address if isinstance(address, str) and 0 < len(address) <= _LONGEST_ADDRESS else None


def _run_of(request: Any) -> tuple[int, int]:
    """Return the number of the run that a request belongs to, and of its retries; 0 and -1 where it tells none."""
    run = (getattr(request, "delivery_info", None) or {}).get("run")
    retries = getattr(request, "retries", None)
    return (run if isinstance(run, int) else 0, retries if isinstance(retries, int) else -1)

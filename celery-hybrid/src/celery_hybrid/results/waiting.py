"""How ``get()`` waits: woken by a push, and looking into the archive now and then."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Protocol

from celery import states
from celery.backends.asynchronous import BaseResultConsumer, Drainer
from celery.exceptions import BackendGetMetaError
from celery.result import AsyncResult, ResultSet
from kombu.utils.compat import detect_environment

from celery_hybrid.errors import IdError, ResultStoreError, ResultStoreUnreachableError
from celery_hybrid.names import id_of
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import Record
from celery_hybrid.results.content import Meta
from celery_hybrid.results.store import Store

logger = logging.getLogger(__name__)

#: Pauses between looks when nothing will be pushed, as in a worker's pool: from the first to poll_interval.
_UNPUSHED_FIRST = 0.05

#: Seconds that the first look may take although the timeout is over, so that get(timeout=0) finds what is there.
SHORTEST_LOOK = 0.2

#: Seconds between two calls of what Celery wants to be called while it waits.
_INTERVAL = 0.5


class WaitingBackend(Protocol):
    """What waiting needs of a result backend, which is :class:`celery_hybrid.results.backend.AMQPBackend`."""

    options: Options
    store: Store

    def meta_of(self, record: Record) -> Meta | None:
        """Return what is known of a task by a record."""


class PollSchedule:
    """When to look into the archive while waiting.

    A result can be missing on the push path: the task was published by a worker, so it carries the worker's
    address (``Task.replace``, subtasks), or the queue was away. So the archive is asked as well, at first after
    ``first`` seconds, then less and less often.

    Args:
        first: seconds until the first look.
        pause: seconds until the second; it doubles.
        longest: the longest pause.
    """

    def __init__(self, first: float, pause: float, longest: float) -> None:
        self._pause = pause
        self._longest = longest
        self.due_at = time.monotonic() + first
        self._latest = self.due_at + longest

    def due(self) -> bool:
        """Return whether it is time to look."""
        return time.monotonic() >= self.due_at

    def pushed(self) -> None:
        """Put the look off, for a while: something was pushed, so the push path works."""
        self.due_at = min(self._latest, max(self.due_at, time.monotonic() + self._pause))

    def looked(self) -> None:
        """Plan the next look."""
        self.due_at = time.monotonic() + self._pause
        self._latest = self.due_at + self._longest
        self._pause = min(2 * self._pause, self._longest)


def _has_failed(p: Any) -> bool:
    """Return from its promise whether a result is there and is a failure."""
    results = p.value[0] if p.ready and p.value else ()
    return any(isinstance(result, AsyncResult) and result.state in states.PROPAGATE_STATES for result in results)


def _parents_of(result: Any) -> frozenset[str]:
    """Return the ids of the tasks that Celery asks for before it waits for a result any longer."""
    found: set[str] = set()
    node = getattr(result, "parent", None)
    while node is not None:
        left = [node]
        while left:
            each = left.pop()
            if isinstance(each, ResultSet):
                left += each.results
            else:
                found.add(each.id)
        node = node.parent
    return frozenset(found)


class ResultConsumer(BaseResultConsumer):
    """Collects results for the waiters of one backend, which is those of one thread.

    Several threads may wait for results of the same backend. The thread that takes a record hands it over, also when
    it is another's, and wakes all others to check whether it was theirs.
    """

    backend: WaitingBackend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery's drainers for gevent and eventlet keep a greenlet for each backend, thus for each greenlet that ever
        # asked for one, and it never ends. Waiting on a patched condition needs none.
        self.drainer = Drainer(self)
        # Nobody drains for callbacks of then() in between; where threads are greenlets the receiver does it.
        self._cooperative = detect_environment() != "default"
        self._wanted: set[str] = set()
        # Ids that were not given as plain text, by their text: Celery finds waiters by the id that they gave.
        self._spellings: dict[str, Any] = {}
        # What this thread asks for while it waits.
        self._asked = threading.local()
        self._reset()

    def _reset(self) -> None:
        self._wanted.clear()
        self._spellings.clear()
        self._inbox: deque[Record] = deque()
        self._changed = threading.Condition()
        self._handed_over = 0

    # What Celery calls.

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Nothing to do: the receiving thread belongs to the process."""

    def stop(self) -> None:
        """Nothing to do: the receiving thread belongs to the process."""

    def on_after_fork(self) -> None:
        """Begin again in a child."""
        self._reset()

    def consume_from(self, task_id: str) -> None:
        """Wait for a task from now on."""
        name = id_of(task_id)
        if name != task_id:
            self._spellings[name] = task_id
        # In this order, see Mailbox.deliver.
        self._wanted.add(name)
        early = self.backend.store.mailbox.take(name)
        if early is not None:
            self.deliver(early)

    def cancel_for(self, task_id: str) -> None:
        """Wait for a task no longer. Called by the garbage collector as well, so it takes no lock."""
        with contextlib.suppress(IdError):
            name = id_of(task_id)
            self._wanted.discard(name)
            self._spellings.pop(name, None)

    # What the receiving thread calls.

    def wants(self, task_id: str) -> bool:
        """Return whether a caller waits for this task."""
        return task_id in self._wanted

    def deliver(self, record: Record) -> None:
        """Take a record, and wake the waiters."""
        with self._changed:
            self._inbox.append(record)
            self._changed.notify_all()
        if self._cooperative and threading.current_thread().name == "celery-hybrid replies":
            try:
                self._hand_over_next()
            except Exception:
                logger.exception("A callback of a result failed.")

    # Waiting.

    def drain_events(self, timeout: float | None = None) -> None:
        """Hand over one record.

        Args:
            timeout: seconds.

        Raises:
            TimeoutError: nothing came.
        """
        with self._changed:
            before = self._handed_over
            self._changed.wait_for(lambda: self._inbox or self._handed_over != before, timeout)
            nothing = not self._inbox and self._handed_over == before
        if nothing:
            raise TimeoutError
        self._hand_over_next()

    def _wait_for_pending(
        self, result: Any, timeout: float | None = None, on_interval: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Wait as Celery does; while it asks for the parents of a result, what was pushed answers."""
        if on_interval is not None:
            on_interval = partial(self._ask, result, on_interval)
        return super()._wait_for_pending(result, timeout=timeout, on_interval=on_interval, **kwargs)

    def drain_events_until(
        self, p: Any, timeout: float | None = None, on_interval: Callable[[], Any] | None = None
    ) -> Iterator[None]:
        """Wait until a promise is kept, looking into the archive now and then.

        Args:
            p: ``on_ready`` of the result.
            timeout: seconds; None waits indefinitely.
            on_interval: called now and then, at least every two seconds.

        Raises:
            TimeoutError: it took longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        store = self.backend.store
        generation = store.replies.generation
        schedule = self._schedule(timeout)
        looked = False
        interval_at = 0.0
        while not p.ready:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0 and (looked or not schedule.due()):
                raise TimeoutError
            if generation != store.replies.generation:
                # Something may have been pushed while we were away.
                generation = store.replies.generation
                schedule = self._schedule(timeout, first=0.0)
            if schedule.due() and not self._inbox:
                self._look(remaining)
                schedule.looked()
                looked = True
            if not p.ready:
                pause = max(0.0, min(1.0, schedule.due_at - time.monotonic()))
                if deadline is not None:
                    pause = max(0.0, min(pause, deadline - time.monotonic()))
                with contextlib.suppress(TimeoutError):
                    self.drain_events(timeout=pause)
                    schedule.pushed()
            yield
            # Celery looks there whether a parent has failed. At the end as well: what a chord's header has raised says
            # more than the ChordError of its body.
            if on_interval and (time.monotonic() >= interval_at or _has_failed(p)):
                interval_at = time.monotonic() + _INTERVAL
                self._call(on_interval)

    @staticmethod
    def _call(on_interval: Callable[[], Any]) -> None:
        try:
            on_interval()
        except BackendGetMetaError as exc:
            # RabbitMQ may come back in time, as for the result itself.
            if not isinstance(exc.__cause__, ResultStoreUnreachableError):
                raise

    def _ask(self, result: Any, on_interval: Callable[[], Any]) -> None:
        """Call what Celery wants to be called; look into the archive for parents only when they were not pushed."""
        asked = self._asked
        asked.parents, asked.unknown = _parents_of(result), set()
        try:
            on_interval()
            failed = _has_failed(result.on_ready)
            store = self.backend.store
            unsure = not store.replies.listening
            missing = {each for each in asked.unknown if failed or unsure or not store.mailbox.expects(each)}
            if missing:
                pause = None if failed else self._disturbed
                for record in store.results(missing, max_age=0.0, pause=pause).values():
                    if record.ready:
                        store.mailbox.add(record)
                on_interval()
        except ResultStoreUnreachableError as exc:
            logger.debug("The parents of %s are not known: %s", result.id, exc)
        finally:
            asked.parents, asked.unknown = frozenset(), set()

    def pushed_parent(self, task_id: str) -> tuple[bool, Record | None]:
        """Return whether this thread asks for a task as a parent of what it waits for, and what was pushed of it."""
        asked = self._asked
        if task_id not in getattr(asked, "parents", ()):
            return False, None
        record = self.backend.store.mailbox.look(task_id)
        if record is None or not record.ready:
            asked.unknown.add(task_id)
            return True, None
        return True, record

    def _disturbed(self) -> bool:
        return bool(self._inbox)

    def _schedule(self, timeout: float | None, first: float | None = None) -> PollSchedule:
        options, store = self.backend.options, self.backend.store
        if not store.replies.listening or not all(store.mailbox.expects(task_id) for task_id in list(self._wanted)):
            # Sent for another client, or pushed already: it may well be there.
            first = 0.0
        pushed = store.replies.listening
        if first is None:
            # Within a short wait too: a replaced task is only found there.
            first = options.poll_interval if timeout is None else min(options.poll_interval, timeout / 2)
        pause = options.poll_interval if pushed else min(_UNPUSHED_FIRST, options.poll_interval)
        return PollSchedule(first, pause, options.poll_interval_max if pushed else options.poll_interval)

    def _look(self, remaining: float | None) -> None:
        """Look for everything that is waited for."""
        wanted = list(self._wanted)
        if not wanted:
            return
        try:
            found = self._results(wanted, remaining)
        except ResultStoreUnreachableError as exc:
            # It may come back in time; the receiver has said so already if it was listening.
            logger.debug("Waiting for %d results goes on: %s", len(wanted), exc)
            return
        except ResultStoreError:
            raise
        except Exception:
            # One of them cannot even be looked up, which is not the others' fault.
            found = self._one_by_one(wanted, remaining)
        for record in found.values():
            if record.ready:
                self._hand_over(record)
        if found:
            self._announce()

    def _results(self, wanted: Collection[str], remaining: float | None) -> dict[str, Record]:
        # Threads that wait for different tasks share the reading: half a second is new enough.
        return self.backend.store.results(
            wanted,
            max_age=min(0.5, self.backend.options.poll_interval / 2),
            timeout=remaining if remaining is None or remaining > 0 else SHORTEST_LOOK,
            pause=self._disturbed,
        )

    def _one_by_one(self, wanted: Collection[str], remaining: float | None) -> dict[str, Record]:
        """Look for each result on its own; a caller that waits for one that cannot be looked up gets the error."""
        found: dict[str, Record] = {}
        for task_id in wanted:
            try:
                found |= self._results([task_id], remaining)
            except ResultStoreError as exc:
                logger.debug("Waiting for %s goes on: %s", task_id, exc)
            except Exception as exc:
                meta = {"status": states.FAILURE, "result": exc, "traceback": None, "children": []}
                self.on_state_change({**meta, "task_id": task_id}, None)
        return found

    def _hand_over_next(self) -> None:
        try:
            record = self._inbox.popleft()
        except IndexError:
            return  # another thread was faster
        try:
            self._hand_over(record)
        finally:
            self._announce()

    def _announce(self) -> None:
        with self._changed:
            self._handed_over += 1
            self._changed.notify_all()

    def _hand_over(self, record: Record) -> None:
        # Delivered twice, by push and from the archive, or no longer waited for: Celery would keep it indefinitely.
        if record.id not in self._wanted:
            return
        meta = self.backend.meta_of(record)
        if meta is not None:
            for task_id in self._spelled(record.id):
                self.on_state_change({**meta, "task_id": task_id}, None)

    def _spelled(self, task_id: str) -> list[Any]:
        other = self._spellings.get(task_id)
        if other is None:
            return [task_id]
        # By its text, too?
        return [other, *([task_id] if any(task_id in waiting for waiting in self._pending_results) else [])]

"""A double of the result backend for the unit tests of applications: everything in memory, no server.

It differs from ``amqp://`` in where records are kept, and in nothing else: encoding, refusal of content types, the
first SUCCESS, ``forget``, expiry and waiting are those of the real backend, as is its code.

A test that runs tasks in a worker, which is a thread of the test::

    import pytest
    from celery.contrib.testing.worker import start_worker
    from celery_hybrid import testing

    from shop.celery import app  # yours


    @pytest.fixture(scope="session")
    def worker():
        app.conf.update(
            broker_url="memory://",
            broker_transport_options={"polling_interval": 0.01},  # looks once a second otherwise
            result_backend="amqp-memory://",
        )
        with start_worker(app, perform_ping_check=False):
            yield


    @pytest.fixture(autouse=True)
    def fresh_results():
        yield
        testing.clear()


    def test_totals(worker):
        sent = app.send_task("shop.total", [[1, 2, 3]])
        assert sent.get(timeout=10) == 6
        assert app.AsyncResult(sent.id).state == "SUCCESS"

Without a worker, every task at once and in place::

    app.conf.update(
        result_backend="amqp-memory://", task_always_eager=True, task_store_eager_result=True
    )

The settings have to be made before the application first asks for its backend; by ``CELERY_RESULT_BACKEND`` in the
environment is the surest way.

All applications of a process that name the same store (``amqp-memory://`` or ``amqp-memory://NAME``) share it, as they
would share RabbitMQ. Other processes do not: the worker's pool has to be ``solo`` or ``threads``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import amqp
from billiard import current_process

from celery_hybrid.archive.archive import Archive
from celery_hybrid.archive.index import Key
from celery_hybrid.archive.partition import Ends
from celery_hybrid.broker.chord_counter import COMPLETE, DONE, GONE, MORE, OPEN, Chord, Command, Part
from celery_hybrid.errors import OptionError, ResultStoreError, TopologyError
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import CHORD_KINDS, DEAD_LETTER, FORGET, GROUP, RESULT, Record, outcome
from celery_hybrid.results.backend import AMQPBackend
from celery_hybrid.results.chords import Chords
from celery_hybrid.results.replies import Mailbox, Replies
from celery_hybrid.results.store import Store

__all__ = ["MemoryBackend", "clear"]

_URL = re.compile(r"amqp-memory://([A-Za-z0-9_.-]*)/?")


class Memory:
    """What RabbitMQ is to the real backend.

    Attributes:
        chords: those under way, by the id of their group.
        finished: ids of the groups of the others.
        dead_letters: routing key and message of each.
        backends: those that keep their records here.
    """

    def __init__(self) -> None:
        self.chords: dict[str, MemoryChord] = {}
        self.finished: set[str] = set()
        self.dead_letters: list[tuple[str, amqp.Message]] = []
        self.backends: weakref.WeakSet[MemoryBackend] = weakref.WeakSet()
        self._lock = threading.Lock()
        # And when each was stored, as RabbitMQ dates its streams.
        self._records: dict[Key, list[tuple[float, Record]]] = {}
        self._mailboxes: weakref.WeakValueDictionary[str, Mailbox] = weakref.WeakValueDictionary()

    def clear(self) -> None:
        """Forget all of it, also what backends remember of it. Who listens goes on listening."""
        with self._lock:
            known, mailboxes = list(self._records), list(self._mailboxes.values())
            self._records.clear()
            self.chords.clear()
            self.finished.clear()
            self.dead_letters.clear()
        for mailbox in mailboxes:
            for _, record_id in known:
                mailbox.forget(record_id)
        for backend in list(self.backends):
            backend._cache.clear()

    def after_fork(self) -> None:
        """Begin again in a child: another thread of the parent may have held the lock, and no thread listens here."""
        self._lock = threading.Lock()
        self._mailboxes = weakref.WeakValueDictionary()

    def add(self, record: Record, reply_to: str | None) -> None:
        """Keep a record, and bring it to the one who waits for it."""
        record = _transmitted(record, reply_to)
        with self._lock:
            records = self._records.setdefault(record.key, [])
            record = dataclasses.replace(record, offset=len(records))
            records.append((time.time(), record))
            mailbox = self._mailboxes.get(reply_to) if reply_to else None
        if mailbox is not None:
            mailbox.deliver(record)

    def outcomes(self, keys: Iterable[Key], expires: float | None) -> dict[Key, Record]:
        """Return the records that hold for those keys that have one."""
        now = time.time()
        found: dict[Key, Record] = {}
        with self._lock:
            for key in keys:
                stored = self._records.get(key, ())
                visible = [record for at, record in stored if not expires or at + expires >= now]
                held = functools.reduce(outcome, visible, None)
                if held is not None and held.kind != FORGET:
                    found[key] = held
        return found

    def listen(self, reply_to: str, mailbox: Mailbox) -> None:
        """Push to a mailbox from now on what is addressed to it."""
        with self._lock:
            self._mailboxes[reply_to] = mailbox

    def leave(self, reply_to: str) -> None:
        """Push to an address no more."""
        with self._lock:
            self._mailboxes.pop(reply_to, None)


@dataclasses.dataclass
class MemoryChord:
    """What is counted of one chord."""

    shape: Any = None
    size: int | None = None
    added: set[str] = dataclasses.field(default_factory=set)
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every task of the header has ended."""
        return self.size is not None and bool(self.parts) and len(self.parts) >= self.size + len(self.added)


class MemoryCounter:
    """Counts chords in memory, whatever the broker is; bodies are sent as any task is."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = memory._lock

    def begin(self, group_id: str, shape: Any) -> None:
        """Begin a chord."""
        with self._lock:
            self._memory.finished.discard(group_id)
            self._memory.chords[group_id] = MemoryChord(shape)

    def resize(self, group_id: str, size: int) -> None:
        """Note how many tasks a header has; the group at the end of a chain is not a chord of its own."""
        with self._lock:
            if group_id in self._memory.chords:
                self._memory.chords[group_id].size = size

    def grow(self, group_id: str, task_id: str) -> str:
        """Note that a header has a task more."""
        with self._lock:
            chord = self._memory.chords.get(group_id)
            if chord is None:
                return self._ended(group_id)
            chord.added.add(task_id)
            return MORE

    def count(
        self,
        group_id: str,
        part: Part,
        origin: dict[str, Any],  # noqa: ARG002 - the task that ends the chord sends its body
        body: bytes,  # noqa: ARG002
        bounded: bool,  # noqa: ARG002 - memory has room
    ) -> str:
        """Count a part."""
        with self._lock:
            chord = self._memory.chords.get(group_id)
            if chord is None:
                return self._ended(group_id)
            known = part.task_id in chord.parts
            chord.parts.setdefault(part.task_id, part)
            return COMPLETE if chord.complete and not known else MORE

    def load(self, group_id: str) -> Chord:
        """Return what there is to finish."""
        with self._lock:
            chord = self._memory.chords.get(group_id)
            if chord is None:
                return Chord(self._ended(group_id))
            state = COMPLETE if chord.complete else OPEN
            return Chord(state, dict(chord.parts), chord.size, chord.shape, added=frozenset(chord.added))

    def excuse(self, group_id: str) -> None:
        """Attempts are not counted."""

    def capture(self) -> contextlib.AbstractContextManager[list[Command]]:
        """Collect nothing: the body is sent immediately."""
        return contextlib.nullcontext([])

    def finish(self, group_id: str, commands: Sequence[Command]) -> bool:  # noqa: ARG002 - there are none
        """Forget a chord."""
        with self._lock:
            self._memory.finished.add(group_id)
            return self._memory.chords.pop(group_id, None) is not None

    def _ended(self, group_id: str) -> str:
        return DONE if group_id in self._memory.finished else GONE


# The parts of a store in memory have the interfaces of the real ones, but none of their connections: so each is made
# without its base's __init__.


class MemoryPublisher(Publisher):
    """Keeps records in memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def publish(
        self,
        record: Record,
        reply_to: str | None = None,
        patience: float | None = None,  # noqa: ARG002 - nothing to wait for
        confirmed: bool = False,  # noqa: ARG002
        attempt: int = 1,  # noqa: ARG002
    ) -> None:
        """Keep a record.

        Raises:
            ResultStoreError: this is a process of a prefork pool, whose memory no other process sees.
        """
        # Celery calls a solo pool's process one of its children, billiard does not.
        if current_process().name != "MainProcess":
            raise ResultStoreError(
                "amqp-memory:// keeps results in one process, and this is a child of a pool: run the worker with "
                "--pool solo or --pool threads."
            )
        if record.kind == DEAD_LETTER:
            self.dead_letter(record.to_message(), record.subject)
        elif record.kind in CHORD_KINDS:
            raise TopologyError("amqp-memory:// has no chords of earlier versions")
        else:
            self._memory.add(record, reply_to)

    def dead_letter(self, message: amqp.Message, routing_key: str) -> None:
        """Keep a dead letter."""
        self._memory.dead_letters.append((routing_key, message))

    def close(self) -> None:
        """There is nothing to close."""

    def abandon(self) -> None:
        """There is nothing to abandon."""


class MemoryArchive(Archive):
    """Looks up what is kept in memory."""

    def __init__(self, memory: Memory, expires: float | None) -> None:
        self._memory = memory
        self._expires = expires

    def result(self, task_id: str) -> Record | None:
        """Return the record that holds for a task, or None."""
        return self._memory.outcomes([(RESULT, task_id)], self._expires).get((RESULT, task_id))

    def group(self, group_id: str) -> Record | None:
        """Return the record of a group, or None."""
        return self._memory.outcomes([(GROUP, group_id)], self._expires).get((GROUP, group_id))

    def results(
        self,
        task_ids: Collection[str],
        max_age: float | None = None,  # noqa: ARG002 - always new
        timeout: float | None = None,  # noqa: ARG002 - always immediate
        since: Ends | None = None,  # noqa: ARG002 - always all
        pause: Callable[[], bool] | None = None,  # noqa: ARG002 - always immediate
    ) -> dict[str, Record]:
        """Return the records that hold for those tasks that have one."""
        found = self._memory.outcomes([(RESULT, task_id) for task_id in task_ids], self._expires)
        return {key[1]: record for key, record in found.items()}

    def ends_ago(self, task_ids: Collection[str], seconds: float, timeout: float) -> Ends:  # noqa: ARG002 - all is read
        """Return that no end is known."""
        return Ends(0.0, {})

    def close(self) -> None:
        """There is nothing to close."""

    def abandon(self) -> None:
        """There is nothing to abandon."""


class MemoryReplies(Replies):
    """Has records pushed by the thread that stores them; there is none of its own."""

    def __init__(self, memory: Memory, reply_to: str, mailbox: Mailbox) -> None:
        self._memory = memory
        self._reply_to = reply_to
        self._mailbox = mailbox
        self._listening = threading.Event()
        self.generation = 0
        self.failure = None

    def start(self, wait: bool = True) -> bool:  # noqa: ARG002 - it is there immediately
        """Begin to receive; also after a worker in this process has ended, and closed what was open."""
        if not self.listening:
            self._memory.listen(self._reply_to, self._mailbox)
            self.generation += 1
            self._listening.set()
        return True

    def stop(self) -> None:
        """Receive no more, until the next start."""
        self._listening.clear()
        self._memory.leave(self._reply_to)
        self._mailbox.unsure()

    def abandon(self) -> None:
        """There is nothing to abandon."""


class MemoryStore(Store):
    """The store of one application, in the memory of its process."""

    def __init__(self, app: Any, url: str, options: Options, expires: float | None) -> None:
        self.memory = memory_of(url)
        # Parsed by the real store, and never connected to.
        super().__init__(app, "amqp://nowhere", options, expires)

    def _assemble(self, reply_to: str) -> None:
        super()._assemble(reply_to)
        self.journal = None
        self.archive = MemoryArchive(self.memory, self._expires)
        self.replies = MemoryReplies(self.memory, reply_to, self.mailbox)

    def _publisher(self, servers: Servers, purpose: str = "publisher") -> Publisher:  # noqa: ARG002 - in memory
        return MemoryPublisher(self.memory)

    def _outbox(self, what: str) -> None:
        """There is no outage to outlive."""

    def serve(self) -> None:
        """There is nothing to do for other workers."""


class MemoryBackend(AMQPBackend):
    """``amqp-memory://``: the backend ``amqp://`` without RabbitMQ."""

    #: Nothing survives the process.
    persistent = False
    store_class = MemoryStore

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = memory_of(self.url)
        self._memory.backends.add(self)

    @property
    def counts_in_redis(self) -> bool:
        """Chords are counted in memory, whatever the broker is."""
        return False

    @property
    def chords(self) -> Chords:
        """The chords of this application."""
        return Chords(self, MemoryCounter(self._memory))


def _transmitted(record: Record, reply_to: str | None = None) -> Record:
    """Return a record as it would come back from RabbitMQ."""
    return Record.from_message(record.to_message(reply_to))


def memory_of(url: str) -> Memory:
    """Return what a URL names; it begins empty.

    Raises:
        OptionError: it is not written ``amqp-memory://`` or ``amqp-memory://NAME``.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise OptionError("result_backend: write it as amqp-memory:// or amqp-memory://NAME, without anything else.")
    with _memories_lock:
        return _memories.setdefault(match[1], Memory())


def clear() -> None:
    """Forget every result of ``amqp-memory://`` in this process: between two tests."""
    with _memories_lock:
        memories = list(_memories.values())
    for memory in memories:
        memory.clear()


def _after_fork() -> None:
    global _memories_lock
    _memories_lock = threading.Lock()
    for memory in _memories.values():
        memory.after_fork()


_memories: dict[str, Memory] = {}
_memories_lock = threading.Lock()

# After the stores, whose handler was registered when their module was imported.
os.register_at_fork(after_in_child=_after_fork)

"""All that one process shares to talk to its result store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import amqp
from celery import signals
from celery._state import get_current_task, task_join_will_block
from kombu.common import oid_from

from celery_hybrid.archive.archive import Archive
from celery_hybrid.broker.sent import stamp
from celery_hybrid.delivery.delivery import DEAD_LETTERS, RESULTS, Delivery
from celery_hybrid.delivery.journal import Journal
from celery_hybrid.delivery.outbox import Outbox
from celery_hybrid.rabbitmq import topology, urls
from celery_hybrid.rabbitmq.connection import HEARTBEATS, Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.publisher import Publisher
from celery_hybrid.rabbitmq.records import Record
from celery_hybrid.results.chords import ChordSweeper
from celery_hybrid.results.content import Refusals
from celery_hybrid.results.latency import storing
from celery_hybrid.results.old_chords import OldChords
from celery_hybrid.results.replies import Mailbox, Replies


class Store:
    """The result store of one application in one process.

    Celery makes a backend for each thread, and another one whenever a result is unpickled. They all share this.

    Args:
        app: the Celery application.
        url: the value of ``result_backend``.
        options: of the backend.
        expires: seconds that results are kept for, None for no limit.

    Raises:
        OptionError: the URL is malformed.
    """

    def __init__(self, app: Any, url: str, options: Options, expires: float | None) -> None:
        self._app = weakref.ref(app)
        servers, query = urls.parse(url)
        self._servers = servers
        self._options = options.merged(query)
        self._expires = expires
        self.refusals = Refusals(self.dead_letter)
        self._serving: int | None = None
        # Of the process that made them; its children use them as well, over connections of their own.
        self._outboxes = {what: self._outbox(what) for what in (RESULTS, DEAD_LETTERS)}
        self._assemble(share_address(app))
        signals.before_task_publish.connect(self.published)

    def _assemble(self, reply_to: str) -> None:
        options = self._options
        servers = Servers(self._servers, options)
        self.reply_to = reply_to
        self._declared = not options.declare
        self.mailbox = mailbox = Mailbox(options.reply_buffer_bytes)
        self.publisher = self._publisher(servers)
        self.archive = Archive(servers, options, self._expires, self._prepare, lambda: mailbox.ends)
        self.replies = Replies(servers, options, reply_to, self.mailbox, self._prepare)
        self.journal = Journal(servers, options, self._prepare) if options.survive_power_loss else None
        self.chords = ChordSweeper(self._app)
        self.old_chords = OldChords(servers, options, self._prepare, self._app)
        self.results_delivery = self._delivery(RESULTS, servers)
        self.dead_letters_delivery = self._delivery(DEAD_LETTERS, servers)

    def _publisher(self, servers: Servers, purpose: str = "publisher") -> Publisher:
        return Publisher(servers, self._options, self._prepare, purpose)

    def _delivery(self, what: str, servers: Servers) -> Delivery:
        relay = self._publisher(servers, f"relay of {what}")
        return Delivery(what, self.publisher, relay, self._outboxes[what], self._options)

    def _outbox(self, what: str) -> Outbox | None:
        options = self._options
        if options.outbox == "":
            return None
        path = Path(options.outbox) if options.outbox else default_outbox(self._servers)
        if what == DEAD_LETTERS:
            path = path.with_name(f"letters-{path.name}")
        return Outbox(path, options.outbox_max_records, options.outbox_max_bytes, what)

    @storing()
    def write(self, record: Record, reply_to: str | None = None) -> None:
        """Store a record of a result, a group or a chord; as :meth:`Delivery.write`."""
        self.results_delivery.write(record, reply_to)

    def keep(self, letter: Record) -> None:
        """Keep a dead letter: confirmed by RabbitMQ, or in the outbox of dead letters; as :meth:`Delivery.keep`."""
        self.dead_letters_delivery.keep(letter)

    def result(self, task_id: str, timeout: float | None = None) -> Record | None:
        """Return the record that holds for a task, or None; as :meth:`results`."""
        return self.results([task_id], timeout=timeout).get(task_id)

    def results(
        self,
        task_ids: Collection[str],
        max_age: float | None = None,
        timeout: float | None = None,
        pause: Callable[[], bool] | None = None,
    ) -> dict[str, Record]:
        """Return what the archive has of tasks, as :meth:`Archive.results` does.

        Of those that were sent from here, and of those that follow on them, nothing older is read than they are.
        """
        look = partial(self.archive.results, max_age=max_age, timeout=timeout, pause=pause)
        ends = {task_id: before for task_id in task_ids if (before := self.mailbox.ends_before(task_id)) is not None}
        unknown = [task_id for task_id in task_ids if task_id not in ends]
        found = look(list(ends), since=min(ends.values(), key=lambda each: each.at)) if ends else {}
        return found | (look(unknown) if unknown else {})

    def results_of(self, task_ids: Collection[str], seconds: float, timeout: float) -> dict[str, Record]:
        """Return what the archive has of tasks that have ended in the last seconds, as :meth:`results` does.

        That is read first, and all the archive only when something is missing: this host's clock may be wrong.
        """
        since = self.archive.ends_ago(task_ids, seconds, timeout)
        found = self.archive.results(task_ids, timeout=timeout, since=since)
        missing = [task_id for task_id in task_ids if task_id not in found]
        return found | (self.results(missing, timeout=timeout) if missing else {})

    def published(self, sender: Any = None, headers: Any = None, body: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Note the tasks that others will send when one that was sent from here has ended: of its chain and chord."""
        task_id = headers.get("id") if isinstance(headers, dict) else None
        embedded = body[2] if isinstance(body, (list, tuple)) and len(body) > 2 else None
        if isinstance(task_id, str) and isinstance(embedded, dict) and self.mailbox.sent_here(task_id):
            self.mailbox.follow(task_id, _ids_in(embedded))

    def dead_letter(self, message: amqp.Message, routing_key: str) -> None:
        """Publish a dead letter; raises what :meth:`Publisher.publish` does."""
        self.publisher.dead_letter(message, routing_key)

    def serve(self) -> None:
        """Do, in a worker's main process, what its children and other workers need: chords and the outbox."""
        if self._serving == os.getpid():
            return
        self._serving = os.getpid()
        self.chords.start()
        self.old_chords.start(wait=False)
        if self.journal is not None:
            self.journal.start(wait=False)
        for delivery in self.deliveries:
            delivery.serve()

    def state(self) -> dict[str, Any]:
        """Return what ``celery inspect result_store`` shows."""
        results, letters = self.deliveries
        state: dict[str, Any] = {
            "servers": [str(server) for server in self._servers],
            "circuit": results.relay.state if results.relay is not None else None,
            "failure": results.failure,
            "refused_results": dict(self.refusals.counts),
        }
        if results.outbox is not None:
            state["outbox"] = results.depth()
        if letters.outbox is not None:
            state["dead_letters"] = {**letters.depth(), "failure": letters.failure}
        return state

    def _prepare(self, connection: amqp.Connection) -> None:
        if not self._declared:
            topology.declare(connection, self._options, self._expires)
            self._declared = True
        topology.check(connection, self._options)

    def close(self) -> None:
        """End the connections; the next use opens them again, except for the push path."""
        self.chords.stop()
        self.old_chords.stop()
        self.replies.stop()
        if self.journal is not None:
            self.journal.stop()
        for delivery in self.deliveries:
            delivery.stop()
        self.publisher.close()
        self.archive.close()
        for outbox in self.outboxes:
            outbox.close()

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (self.publisher, self.archive, self.replies, self.old_chords, self.journal, *self.deliveries)

    @property
    def deliveries(self) -> tuple[Delivery, Delivery]:
        """The ways of results and of dead letters to RabbitMQ, which do not hold each other up."""
        return (self.results_delivery, self.dead_letters_delivery)

    @property
    def outboxes(self) -> list[Outbox]:
        """The files that records wait in."""
        return [outbox for outbox in self._outboxes.values() if outbox is not None]

    def after_fork(self) -> None:
        """Begin again in a child: its parent goes on using the connections, and locks may never be released."""
        for part in self._parts:
            if part is not None:
                part.abandon()
        for outbox in self.outboxes:
            outbox.abandon()
        app = self._app()
        if app is not None:
            self._assemble(share_address(app))


def _ids_in(embedded: dict[str, Any]) -> set[str]:
    """Return the ids of the tasks that follow on one: of its chain and its chord, and of what is nested in them.

    Args:
        embedded: what its message carries beside the arguments (``chain`` and ``chord``, which are signatures).
    """
    found: set[str] = set()
    left = [embedded.get("chain"), embedded.get("chord")]
    while left:
        each = left.pop()
        if isinstance(each, (list, tuple)):
            left += each
        elif isinstance(each, dict):
            options, parts = each.get("options") or {}, each.get("kwargs") or {}
            if isinstance(options.get("task_id"), str):
                found.add(options["task_id"])
            left.append(options.get("chord"))
            if each.get("subtask_type"):
                left += [parts.get(name) for name in ("tasks", "header", "body")]
    return found


def default_outbox(servers: list[urls.Server]) -> Path:
    """Return where the outbox of a result store is when no option says it."""
    # systemd's own directory for a unit's state; else the user's (XDG base directory specification).
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state) / "outbox.sqlite3"
    name = f"outbox-{hashlib.sha256(' '.join(map(str, servers)).encode()).hexdigest()[:16]}.sqlite3"
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    except RuntimeError:
        # A user without a home: not a good place, as it may be emptied at a start, but one that can be written.
        home = Path(tempfile.gettempdir()) / f"celery-hybrid-{os.getuid()}"
    return home / "celery-hybrid" / name


def share_address(app: Any) -> str:
    """Return the address that all tasks sent by this process carry as ``reply_to``; make the application use it.

    Celery has one for each thread, and children inherit their parent's: two processes would share a reply queue and
    take each other's results. It has to be in the application itself, because signatures that are frozen (chains,
    groups) carry it as well. Celery keeps it as ``app._local.oid``.
    """
    local = type(app._local)
    known = getattr(local, _OWNER, None)
    if known == os.getpid():
        return str(getattr(local, _ADDRESS))
    # The first task is given its address before Celery makes the backend, and signatures may have been frozen before.
    # That address is kept, unless it comes from a parent: Celery derives it from process and thread.
    given = vars(app._local).get("oid")
    address = str(given if given == oid_from(app) else uuid.uuid4())
    # Of the same class as before, which is a greenlet's when gevent has patched threads.
    base = local if known is None else local.__mro__[1]
    # A task that must not wait sends others on behalf of the client that waits for it (Task.replace, chains, chords).
    oid = property(lambda _: _waiting_client() or address)
    app._local = type("ProcessLocal", (base,), {"oid": oid, _ADDRESS: address, _OWNER: os.getpid()})()
    return address


def _waiting_client() -> str | None:
    task = get_current_task() if task_join_will_block() else None
    return getattr(task.request, "reply_to", None) if task is not None else None


def store_of(app: Any, url: str, options: Options, expires: float | None, kind: type[Store] = Store) -> Store:
    """Return the store of an application, the same for all its threads and backends of that URL."""
    key = (kind, url, options, expires)
    with _registry.lock:
        stores = _registry.stores.setdefault(app, {})
        store = stores.get(key)
        if store is None:
            store = stores[key] = kind(app, url, options, expires)
            # When the application is garbage, and when the interpreter ends.
            weakref.finalize(app, store.close)
        return store


def stores_of(app: Any) -> list[Store]:
    """Return the stores that an application has in this process."""
    with _registry.lock:
        return list(_registry.stores.get(app, {}).values())


def on_fork(listener: Any) -> None:
    """Call ``after_fork()`` of an object in each child, after the stores are new. It is not kept alive."""
    with _registry.lock:
        _registry.listeners.add(listener)


class _Registry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stores: weakref.WeakKeyDictionary[Any, dict[Any, Store]] = weakref.WeakKeyDictionary()
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self.held: list[Outbox] = []

    def before_fork(self) -> None:
        self.held = [box for stores in self.stores.values() for store in stores.values() for box in store.outboxes]
        for outbox in self.held:
            outbox.hold()

    def after_fork_in_parent(self) -> None:
        for outbox in self.held:
            outbox.release()

    def after_fork(self) -> None:
        self.lock = threading.Lock()
        HEARTBEATS.after_fork()
        for stores in list(self.stores.values()):
            for store in stores.values():
                store.after_fork()
        for listener in list(self.listeners):
            listener.after_fork()

    def close(self, **_: Any) -> None:
        for stores in list(self.stores.values()):
            for store in stores.values():
                store.close()

    def serve(self, sender: Any = None, **_: Any) -> None:
        for store in stores_of(sender.app):
            store.serve()


_OWNER, _ADDRESS = "celery_hybrid_pid", "celery_hybrid_address"
_registry = _Registry()

# os, not billiard: gunicorn, uwsgi and multiprocessing fork as well.
os.register_at_fork(
    before=_registry.before_fork,
    after_in_parent=_registry.after_fork_in_parent,
    after_in_child=_registry.after_fork,
)
# The children of a pool leave with os._exit(), which runs no finalizers.
signals.worker_process_shutdown.connect(_registry.close, weak=False)
# In the main process. Workers of celery.contrib.testing do not say that they are ready.
signals.worker_ready.connect(_registry.serve, weak=False)
signals.task_received.connect(_registry.serve, weak=False)
# So that workers can tell how long a task has waited.
signals.before_task_publish.connect(stamp, weak=False)

"""All that one process shares to talk to its result store."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from typing import Any

import amqp
from celery import signals
from kombu.common import oid_from

from celery_hybrid import topology, urls
from celery_hybrid.archive import Archive
from celery_hybrid.connection import HEARTBEATS, Servers
from celery_hybrid.content import Refusals
from celery_hybrid.options import Options
from celery_hybrid.publisher import Publisher
from celery_hybrid.replies import Mailbox, Replies


class Store:
    """The result store of one application in one process.

    Celery makes a backend for each thread, and another one whenever a result is unpickled. They all share this.

    Args:
        app: the Celery application.
        url: the value of ``result_backend``.
        options: of the backend.
        expires: seconds that results are kept for, None for ever.

    Raises:
        OptionError: the URL is malformed.
    """

    def __init__(self, app: Any, url: str, options: Options, expires: float | None) -> None:
        self._app = weakref.ref(app)
        servers, query = urls.parse(url)
        self._servers = servers
        self._options = options.merged(query)
        self._expires = expires
        self.refusals = Refusals()
        self._assemble(share_address(app))

    def _assemble(self, reply_to: str) -> None:
        options = self._options
        servers = Servers(self._servers, options)
        self.reply_to = reply_to
        self._declared = not options.declare
        self.mailbox = Mailbox(options.reply_buffer_bytes)
        self.publisher = Publisher(servers, options, self._prepare)
        self.archive = Archive(servers, options, self._expires, self._prepare)
        self.replies = Replies(servers, options, reply_to, self.mailbox, self._prepare)

    def _prepare(self, connection: amqp.Connection) -> None:
        if not self._declared:
            topology.declare(connection, self._options, self._expires)
            self._declared = True
        topology.check(connection, self._options)

    def close(self) -> None:
        """End the connections; the next use opens them again, except for the push path."""
        self.replies.stop()
        self.publisher.close()
        self.archive.close()

    def after_fork(self) -> None:
        """Begin anew in a child: its parent goes on using the connections, and locks may be held for ever."""
        for part in (self.publisher, self.archive, self.replies):
            part.abandon()
        app = self._app()
        if app is not None:
            self._assemble(share_address(app))


def share_address(app: Any) -> str:
    """Return the address that all tasks sent by this process carry as ``reply_to``; make the application use it.

    Celery has one for each thread, and children inherit their parent's: two processes would share a reply queue and
    take each other's results. It has to be in the application itself, because signatures that are frozen (chains,
    groups) carry it as well. Celery keeps it as ``app._local.oid``.
    """
    local = type(app._local)
    known = getattr(local, _OWNER, None)
    if known == os.getpid():
        return str(local.oid)
    # The first task is given its address before Celery makes the backend, and signatures may have been frozen before.
    # That address is kept, unless it comes from a parent: Celery derives it from process and thread.
    given = vars(app._local).get("oid")
    address = str(given if given == oid_from(app) else uuid.uuid4())
    # Of the same class as before, which is a greenlet's when gevent has patched threads.
    base = local if known is None else local.__mro__[1]
    app._local = type("ProcessLocal", (base,), {"oid": address, _OWNER: os.getpid()})()
    return address


def store_of(app: Any, url: str, options: Options, expires: float | None) -> Store:
    """Return the store of an application, the same for all its threads and backends of that URL."""
    key = (url, options, expires)
    with _registry.lock:
        stores = _registry.stores.setdefault(app, {})
        store = stores.get(key)
        if store is None:
            store = stores[key] = Store(app, url, options, expires)
            # When the application is garbage, and when the interpreter ends.
            weakref.finalize(app, store.close)
        return store


def on_fork(listener: Any) -> None:
    """Call ``after_fork()`` of an object in each child, after the stores are new. It is not kept alive."""
    with _registry.lock:
        _registry.listeners.add(listener)


class _Registry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stores: weakref.WeakKeyDictionary[Any, dict[Any, Store]] = weakref.WeakKeyDictionary()
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()

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


_OWNER = "celery_hybrid_pid"
_registry = _Registry()

# os, not billiard: gunicorn, uwsgi and multiprocessing fork as well.
os.register_at_fork(after_in_child=_registry.after_fork)
# The children of a pool leave with os._exit(), which runs no finalizers.
signals.worker_process_shutdown.connect(_registry.close, weak=False)

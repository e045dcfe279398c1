"""The HTTP server that Prometheus asks."""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app

logger = logging.getLogger(__name__)

#: Seconds after which a client that says nothing is left alone.
_CLIENT_SECONDS = 5


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Two workers with the same port: the second one is told so.
    allow_reuse_port = False

    def server_bind(self) -> None:
        # http.server asks for the name of the address, which takes long where no name server answers.
        socket_server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()


def socket_server_bind(server: Any) -> None:
    """Bind as :class:`socketserver.TCPServer` does."""
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.socket.bind(server.server_address)
    server.server_address = server.socket.getsockname()


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Do not log scrapes."""


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


class Exposition:
    """Serves the metrics of this process, in threads of its own.

    Args:
        address: IP address and port.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._server: _Server | None = None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def start(self) -> None:
        """Begin to answer. What hinders it is logged: a worker runs tasks without metrics as well."""
        kind = _SixServer if ":" in self._address[0] else _Server
        try:
            server = kind(self._address, _Handler)
        except OSError as exc:
            host, port = self._address
            logger.error(
                "No metrics are served: cannot listen on %s port %d (%s). Stop what uses it, or set another "
                "address (worker_metrics_port).",
                *(host, port, exc.strerror or exc),
            )
            return
        server.set_app(make_wsgi_app(self.registry))
        self._server = server
        _servers.add(server)
        threading.Thread(target=server.serve_forever, name="celery-hybrid metrics", daemon=True).start()

    def stop(self) -> None:
        """End."""
        server, self._server = self._server, None
        if server is not None:
            _servers.discard(server)
            server.shutdown()
            server.server_close()


def _after_fork() -> None:
    # Else a child that outlives its parent would keep the port.
    for server in list(_servers):
        server.socket.close()
    _servers.clear()


os.register_at_fork(after_in_child=_after_fork)

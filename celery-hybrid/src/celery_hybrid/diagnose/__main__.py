"""``python -m celery_hybrid.diagnose``: prints a line of JSON for each part that was read."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from celery import Celery
from kombu.utils.json import dumps

from celery_hybrid.masking import Mask
from celery_hybrid.verify.settings import censored

from . import broker, sockets, workers
from .request import DiagnoseRequest, DiagnoseRequestError


class Reading:
    """Reads part by part, and prints each immediately, so that what was read is kept when this program is killed.

    Args:
        request: what is to be read.
        out: where the lines go.
    """

    def __init__(self, request: DiagnoseRequest, out: TextIO) -> None:
        self._request = request
        self._out = out
        self._mask = Mask(os.environ.values())
        self.complete = True

    def run(self) -> None:
        """Read everything that can be read."""
        request = self._request
        app = Celery("celery_hybrid.diagnose", set_as_current=False)
        self._part("sockets", sockets.read)
        settings = self._part("settings", lambda: self._settings(app))
        if settings is None:
            return
        options = app.conf.broker_transport_options or {}
        # A look must end: the workers' own, longer limits are for workers.
        limits = {"socket_timeout": request.timeout, "socket_connect_timeout": request.timeout}
        app.conf.broker_transport_options = {**options, **limits, "retry_on_timeout": False}
        connection = app.connection_for_write()
        declared = [queue.name for queue in app.amqp.queues.values()]
        # Those of the queues, and the one that answers to remote control come through.
        exchanges = {queue.exchange.name for queue in app.amqp.queues.values() if queue.exchange.name}
        exchanges.add(app.control.mailbox.reply_exchange.name)
        found = self._part("redis", lambda: broker.read(connection.channel(), declared, exchanges))
        if found is None:
            return
        self._part("workers", lambda: workers.read(app, request.nodes, request.others, request.timeout))
        # What was acknowledged meanwhile was in no worker's hand when that was asked.
        tags = [message["tag"] for message in found["unacked"]["messages"]]
        self._part("still_unacked", lambda: broker.still_unacked(connection.channel(), tags))

    def _settings(self, app: Any) -> dict[str, Any]:
        app.finalize(auto=True)
        return {"config": censored(app), "broker": self._mask(str(app.conf.broker_url)), "pid": os.getpid()}

    def _part(self, name: str, read: Callable[[], Any]) -> Any:
        started = time.monotonic()
        line: dict[str, Any] = {"part": name}
        value = None
        try:
            line["data"] = value = read()
        except BaseException as exc:  # a settings module may even call sys.exit()
            self.complete = False
            line["error"] = f"{type(exc).__name__}: {exc}"
        line["seconds"] = round(time.monotonic() - started, 2)
        # kombu's, because settings and answers of workers hold sets, dates and the like.
        self._out.write(self._mask(dumps(line)) + "\n")
        self._out.flush()
        return value


def main(arguments: list[str] | None = None) -> int:
    """Read, print, and return the exit code.

    Returns:
        0: everything was read; 1: a part was not; 2: the request could not be understood.
    """
    options = _parser().parse_args(arguments)
    try:
        data = json.load(sys.stdin) if options.request else {"python_path": [str(Path.cwd())], "nodes": options.node}
        request = DiagnoseRequest.from_mapping(data)
    except (DiagnoseRequestError, ValueError) as exc:
        sys.stderr.write(f"celery_hybrid.diagnose: {exc}\n")
        return 2
    # Settings may print while they are imported; the answer must stay readable for programs.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger("kombu").setLevel(logging.ERROR)
    sys.path[:0] = request.python_path
    if request.config_module:
        os.environ["CELERY_CONFIG_MODULE"] = request.config_module
    reading = Reading(request, out)
    reading.run()
    out.write('{"end": true}\n')
    out.flush()
    return 0 if reading.complete else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m celery_hybrid.diagnose",
        description="Read what live workers, queues and unacknowledged messages are like, as lines of JSON. URLs are "
        "taken from the environment (CELERY_BROKER_URL) and CELERY_CONFIG_MODULE. Changes nothing.",
    )
    parser.add_argument("--node", action="append", default=[], help="node name that should answer")
    parser.add_argument("--request", choices=["-"], help="read the request as JSON from standard input")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of a client library must not keep a finished reading alive.
    os._exit(code)

"""``celery control log_level``: raises the level of loggers in a running worker for a while, and puts it back.

    celery -A app control log_level DEBUG 600
    celery -A app control log_level DEBUG 600 kombu payments.tasks -d default@worker1
    celery -A app control log_level reset

The main process applies it to itself and then to the children of its pool: it writes the levels into memory that all of
them share and sends them a signal. A child that is forked later inherits the levels. After the given seconds the main
process puts everything back by itself; a restart does as well.

With DEBUG, for ``kombu``, what kombu logs when ``KOMBU_LOG_CONNECTION`` and ``KOMBU_LOG_CHANNEL`` are set in the
environment is switched on too, for connections and channels that are made from then on: those of tasks that send tasks,
and the consumer's own after it has connected again. The ones that are open cannot be traced without a restart.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import signal
import threading
from typing import Any

import kombu.connection
from celery import signals
from celery.worker.control import control_command

logger = logging.getLogger(__name__)

#: What is raised when no logger is named. ``celery.task`` is the parent of the loggers that get_task_logger() gives.
LOGGERS = ("celery", "celery.task", "celery_hybrid", "kombu", "amqp")
#: Seconds after which the levels are put back, if nothing else is said.
DEFAULT_SECONDS = 600.0
_LONGEST = 86_400.0
_SIZE = 16_384
# Of the real-time signals, which nothing else here uses; NPTL keeps the first two for itself.
_SIGNAL = signal.SIGRTMIN + 9
_TRACES = ("_log_connection", "_log_channel")


class Levels:
    """The levels of loggers of one process, and what they were before.

    Args:
        shared: memory that this process shares with the children of its pool.
    """

    def __init__(self, shared: mmap.mmap | None = None) -> None:
        self._shared = shared if shared is not None else mmap.mmap(-1, _SIZE)
        self._before: dict[str, int] = {}
        self._traced_before: dict[str, Any] | None = None
        self.wanted: dict[str, int] = {}

    def publish(self, wanted: dict[str, int]) -> None:
        """Write what children shall read.

        Raises:
            ValueError: it is too much.
        """
        text = json.dumps(wanted).encode() + b"\0"
        if len(text) > _SIZE:
            raise ValueError("too many loggers at the same time")
        self._shared[: len(text)] = text

    def read(self) -> dict[str, int]:
        """Return what the main process has written."""
        text = self._shared[:].split(b"\0", 1)[0]
        return dict(json.loads(text)) if text else {}

    def apply(self, wanted: dict[str, int]) -> None:
        """Give loggers these levels, and all others that this has changed the level that they had."""
        for name in self._before.keys() - wanted.keys():
            logging.getLogger(name).setLevel(self._before.pop(name))
        for name, level in wanted.items():
            each = logging.getLogger(name)
            self._before.setdefault(name, each.level)
            each.setLevel(level)
        self.wanted = dict(wanted)
        self._trace(wanted.get("kombu", logging.WARNING) <= logging.DEBUG)

    def _trace(self, on: bool) -> None:
        if on and self._traced_before is None:
            self._traced_before = {name: getattr(kombu.connection, name, False) for name in _TRACES}
            for name in _TRACES:
                setattr(kombu.connection, name, True)
        elif not on and self._traced_before is not None:
            for name, value in self._traced_before.items():
                setattr(kombu.connection, name, value)
            self._traced_before = None


class _Main:
    """Of the worker's main process."""

    levels = Levels()
    prepared: int | None = None
    # Not the consumer's timer, which forgets everything when the connection to the broker is lost.
    timer: threading.Timer | None = None
    lock = threading.Lock()


def prepare(**_: Any) -> None:
    """Let children understand the signal: before they are forked, so that it never ends one."""
    if _Main.prepared == os.getpid():
        return
    # Only a main thread may; a worker in another one has children that keep their levels.
    with contextlib.suppress(ValueError):
        signal.signal(_SIGNAL, _on_signal)
        # A task's system call goes on where it was.
        signal.siginterrupt(_SIGNAL, False)
        _Main.prepared = os.getpid()
    # A child may be forked while levels change; Python forgets signals that arrive meanwhile.
    signals.worker_process_init.connect(_on_signal, weak=False, dispatch_uid="celery_hybrid.worker.log_level")


def _on_signal(*_: Any, **__: Any) -> None:
    # Anything raised here would be raised in the middle of a task.
    with contextlib.suppress(Exception):
        _Main.levels.apply(_Main.levels.read())


@control_command(  # type: ignore[untyped-decorator]
    # All in one: with arguments before it, Celery's command line repeats the last of them in the variadic one.
    variadic="words",
    signature="LEVEL|reset [SECONDS=600] [LOGGER ...]",
)
def log_level(state: Any, words: Any = (), **_: Any) -> dict[str, Any]:
    """Set the level of loggers for some seconds, in all processes of the worker; 'reset' puts it back immediately."""
    given = [str(word) for word in words]
    level, loggers = (given or [""])[0], given[2:]
    try:
        seconds = float(given[1]) if len(given) > 1 else DEFAULT_SECONDS
    except ValueError:
        return {"error": f"{given[1]!r} is not a valid number of seconds"}
    number = logging.getLevelName(str(level).upper())
    if str(level).lower() == "reset":
        wanted: dict[str, int] = {}
    elif not isinstance(number, int):
        return {"error": f"{level!r} is not a valid level: use DEBUG, INFO, WARNING, ERROR, CRITICAL or reset"}
    elif not 0 < seconds <= _LONGEST:
        return {"error": f"{seconds:g} is not a valid number of seconds: it must be between 0 and {_LONGEST:g}"}
    else:
        named = {"" if name == "root" else str(name): number for name in loggers or LOGGERS}
        wanted = {**_Main.levels.wanted, **named}
    try:
        told = _set(state.consumer.pool, wanted, seconds)
    except ValueError as exc:
        return {"error": str(exc)}
    shown = {name or "root": logging.getLevelName(value) for name, value in sorted(wanted.items())}
    how = f"{shown}, for {seconds:g} s" if wanted else "as they were"
    logger.warning("Levels of loggers are %s; notified %d children.", how, told)
    return {"ok": f"levels are {how}", "levels": shown, "seconds": seconds if wanted else 0, "children": told}


def _set(pool: Any, wanted: dict[str, int], seconds: float) -> int:
    """Set levels in all processes; return the number of children."""
    with _Main.lock:
        _Main.levels.publish(wanted)
        _Main.levels.apply(wanted)
        if _Main.timer is not None:
            _Main.timer.cancel()
            _Main.timer = None
        if wanted:
            _Main.timer = threading.Timer(seconds, _put_back, (pool,))
            _Main.timer.daemon = True
            _Main.timer.start()
        told = 0
        for pid in _children(pool):
            # It may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _SIGNAL)
                told += 1
        return told


def _children(pool: Any) -> list[int]:
    # Threads, greenlets and the solo pool live in this process. Children that were forked before the signal was
    # prepared would die of it.
    if _Main.prepared != os.getpid() or not type(pool).__module__.endswith(".prefork"):
        return []
    return [process.pid for process in getattr(pool._pool, "_pool", []) if process.pid]


def _put_back(pool: Any) -> None:
    told = _set(pool, {}, 0)
    logger.warning("Time is up: levels of loggers are as they were; notified %d children.", told)


signals.worker_before_create_process.connect(prepare, weak=False, dispatch_uid="celery_hybrid.worker.log_level")

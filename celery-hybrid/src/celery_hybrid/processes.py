"""What a process is to Celery: it decides who may wait, who keeps an outbox, and who serves the others."""

from __future__ import annotations

import os
import threading
from typing import Any

from billiard.process import current_process
from celery import signals
from celery._state import get_current_task


class _Known:
    main: int | None = None


def _main_process(**_: Any) -> None:
    _Known.main = os.getpid()


def is_pool_child() -> bool:
    """Return whether this is a child of a prefork pool."""
    # Asked of billiard, which the pool is made of: its signals may have been sent before this module was imported.
    return bool(current_process().name != "MainProcess")


def runs_tasks() -> bool:
    """Return whether this process belongs to a worker, or is in the middle of a task."""
    return _Known.main == os.getpid() or is_pool_child() or get_current_task() is not None


def must_not_wait() -> bool:
    """Return whether this is the event loop of a worker's main process, outside of any task.

    While it waits there are no heartbeats and no acknowledgements.
    """
    in_loop = _Known.main == os.getpid() and threading.current_thread() is threading.main_thread()
    return in_loop and get_current_task() is None


signals.worker_ready.connect(_main_process, weak=False)

"""The application of the tests, as a unit of systemd runs it; what is stuck is known after two seconds."""

from __future__ import annotations

import time

from celery.worker.control import control_command
from hybrid_tasks import app, make_app

from celery_hybrid.worker import systemd

__all__ = ["app", "make_app"]

systemd.install(drain_seconds=4, patience=2)
app.conf.worker_soft_shutdown_timeout = 0
app.conf.beat_schedule = {"add": {"task": "hybrid.add", "schedule": 3600, "args": (1, 1)}}


@control_command(args=[("seconds", float)])
def hang(state, seconds):
    """Keep the worker's event loop busy."""
    time.sleep(seconds)

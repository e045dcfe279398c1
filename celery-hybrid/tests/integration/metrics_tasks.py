"""The application of the tests of metrics: served where the environment says."""

from __future__ import annotations

import os
import time

from celery.worker.control import control_command
from hybrid_tasks import app, make_app

from celery_hybrid import metrics

__all__ = ["app", "make_app"]

app.conf.worker_consumer = "celery_hybrid.worker.consumer:Consumer"
app.conf.beat_schedule = {"add": {"task": "hybrid.add", "schedule": 0.5, "args": (1, 1)}}
metrics.install(os.environ["CELERY_HYBRID_TEST_METRICS"])


@control_command(args=[("seconds", float)])
def hang(state, seconds):
    """Keep the worker's event loop busy."""
    time.sleep(seconds)

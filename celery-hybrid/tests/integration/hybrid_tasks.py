"""The application of the integration tests: imported by the worker processes and by the tests."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery, group

OPTIONS = {
    "partitions": int(os.environ.get("CELERY_HYBRID_TEST_PARTITIONS", "16")),
    **json.loads(os.environ.get("CELERY_HYBRID_TEST_OPTIONS", "{}")),
}


def make_app(**settings):
    """Return an application configured by the environment, with the tasks of this module."""
    app = Celery("hybrid_tasks", set_as_current=False)
    app.conf.update(
        # Tests that need a server end before they use this one.
        broker_url=os.environ.get("CELERY_HYBRID_TEST_BROKER", "redis://not-set.invalid"),
        result_backend=os.environ.get("CELERY_HYBRID_TEST_RESULTS", "amqp://not-set.invalid"),
        result_backend_transport_options=OPTIONS,
        task_default_queue=os.environ.get("CELERY_HYBRID_TEST_QUEUE", "hybrid-tests"),
        broker_connection_retry_on_startup=True,
        result_extended=True,
        task_track_started=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        result_chord_retry_interval=0.2,
        accept_content=["json"],
        **settings,
    )
    for function, options in TASKS:
        # Not for other applications of the process, as those of other tests.
        app.task(name=f"hybrid.{function.__name__}", shared=False, **options)(function)
    return app


def add(x, y):
    return x + y


def total(numbers):
    return sum(numbers)


def fail(text):
    raise ValueError(text)


def wait_for_file(path, seconds=60):
    end = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.05)
    return "found"


def progress(self, steps, path):
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step + 1})
    wait_for_file(path)
    return steps


def replaced(self, x):
    raise self.replace(self.app.signature("hybrid.add", (x, 1)))


def spawn(self, count):
    """Send subtasks and return their group, as a tree of results."""
    return group(self.app.signature("hybrid.add", (i, i)) for i in range(count))()


def wait_inside(self, x):
    """Wait for another task inside a task."""
    from celery.result import allow_join_result

    with allow_join_result():
        return self.app.signature("hybrid.add", (x, x)).delay().get(timeout=20)


def retried(self, path):
    """Fail the first time."""
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("once"), countdown=0.5, max_retries=3)
    return self.request.retries


def quiet(x):
    return x


def note(text, path):
    with Path(path).open("a") as file:
        file.write(text + "\n")


def errback(request, exc, traceback):
    note(f"{request.id} {exc}", os.environ["CELERY_HYBRID_TEST_ERRBACK"])


TASKS = [
    (add, {}),
    (total, {}),
    (fail, {}),
    (wait_for_file, {}),
    (progress, {"bind": True}),
    (replaced, {"bind": True}),
    (spawn, {"bind": True}),
    (wait_inside, {"bind": True}),
    (retried, {"bind": True}),
    (quiet, {"ignore_result": True}),
    (note, {}),
    (errback, {}),
]

if "CELERY_HYBRID_TEST_RESULTS" in os.environ:
    app = make_app()

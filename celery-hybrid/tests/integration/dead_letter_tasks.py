"""The application of the tests of the consumer: its worker keeps tasks, and puts bad ones away."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from celery.exceptions import Reject
from hybrid_tasks import make_app

from celery_hybrid.broker import transport

# The pair that belongs together. With kombu's own transport only elements that are not messages are not dead-lettered.
if "CELERY_HYBRID_TEST_STOCK" not in os.environ:
    transport.install()

app = make_app(
    worker_consumer="celery_hybrid.worker.consumer:Consumer",
    worker_dead_letters={"ignore": ["LookupError"], "lost_retries": 1, "lost_retry_delay": 0.5},
    # As the role has it.
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": 20,
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "deadletter_queue": f"{os.environ['CELERY_HYBRID_TEST_QUEUE']}.undeliverable",
        **json.loads(os.environ.get("CELERY_HYBRID_TEST_BROKER_OPTIONS", "{}")),
    },
)


def note(path, text="ran"):
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@app.task(name="letters.work", shared=False, acks_late=True)
def work(path, seconds=0, text="ran"):
    note(path, text)
    time.sleep(seconds)


@app.task(name="letters.wait", shared=False)
def wait(path, go, seconds=60):
    note(path)
    end = time.monotonic() + seconds
    while not Path(go).exists() and time.monotonic() < end:
        time.sleep(0.05)


@app.task(name="letters.fail", shared=False)
def fail(path="", go=""):
    if go and Path(go).exists():
        return "well"
    raise ValueError("no good")


@app.task(name="letters.expected", shared=False, throws=(KeyError,))
def expected(kind):
    raise {"key": KeyError, "index": IndexError}[kind](kind)


@app.task(name="letters.retry", shared=False, bind=True, max_retries=1)
def retry(self, path):
    note(path)
    raise self.retry(exc=ValueError("still no good"), countdown=0.1)


@app.task(name="letters.retry_when", shared=False, bind=True)
def retry_when(self, path, go):
    note(path)
    if self.request.retries == 0 and not Path(f"{path}.again").exists():
        wait(f"{path}.waits", go)
        Path(f"{path}.again").touch()
        raise self.retry(countdown=0.1, max_retries=1)


@app.task(name="letters.reject", shared=False)
def reject():
    raise Reject("not mine", requeue=False)


@app.task(name="letters.die", shared=False)
def die(path):
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="letters.eat", shared=False)
def eat(path):
    note(path)
    raise MemoryError("too much")


@app.task(name="letters.hang", shared=False, time_limit=1)
def hang(path):
    note(path)
    time.sleep(60)


@app.task(name="letters.run", shared=False, bind=True)
def run(self, path):
    note(path, str(self.request.delivery_info["run"]))
    if not self.request.retries:
        raise self.retry(countdown=0.1, max_retries=1)

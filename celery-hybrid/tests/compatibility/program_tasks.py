"""The application of the workers of the compatibility tests: deployed as the role does, with popular packages in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import sentry_sdk
from celery import Celery
from celery_once import QueueOnce
from celery_progress.backend import ProgressRecorder
from celery_singleton import Singleton
from kombu import Queue
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from celery_hybrid.broker import transport

BROKER = urlsplit(os.environ["CELERY_HYBRID_TEST_BROKER"])
# celery-once neither decodes a URL nor takes its user; it does both with options.
LOGIN = urlencode({"username": BROKER.username, "password": unquote(BROKER.password or "")})
EVENTS = Path(os.environ.get("COMPATIBILITY_EVENTS", os.devnull))
QUEUE = os.environ["CELERY_HYBRID_TEST_QUEUE"]


class File(Transport):
    """Sentry's way out: a line for each event."""

    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            with EVENTS.open("a") as file:
                file.write(json.dumps({"level": event.get("level"), "logger": event.get("logger")}) + "\n")


sentry_sdk.init("http://key@127.0.0.1/1", transport=File, integrations=[CeleryIntegration()])
transport.install()
app = Celery("program_tasks", set_as_current=False)
app.conf.update(
    # As in the module that the role writes.
    broker_url=os.environ["CELERY_HYBRID_TEST_BROKER"],
    result_backend=os.environ["CELERY_HYBRID_TEST_RESULTS"],
    task_queues=[Queue(QUEUE, exchange=QUEUE, routing_key=QUEUE)],
    task_default_queue=QUEUE,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_consumer="celery_hybrid.worker.consumer:Consumer",
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
    accept_content=["json"],
    ONCE={
        "backend": "celery_once.backends.Redis",
        "settings": {"url": f"redis://{BROKER.hostname}:{BROKER.port}{BROKER.path}?{LOGIN}", "default_timeout": 60},
    },
)


@app.task(name="programs.add", shared=False)
def add(x, y):
    return x + y


@app.task(name="programs.fail", shared=False)
def fail():
    raise ValueError("on purpose")


@app.task(name="programs.single", base=Singleton, shared=False)
def single(x):
    return x


@app.task(name="programs.once", base=QueueOnce, once={"graceful": True}, shared=False)
def once(x):
    return x


@app.task(name="programs.progress", bind=True, shared=False)
def progress(self):
    ProgressRecorder(self).set_progress(1, 2)
    return "done"

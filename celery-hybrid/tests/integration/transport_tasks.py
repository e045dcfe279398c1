"""The application of the workers that test the transport: Redis alone, and no results."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

from celery_hybrid.broker import transport

if os.environ.get("TRANSPORT_TEST_KIND") == "atomic":
    transport.install()

app = Celery("transport_tasks", broker=os.environ.get("CELERY_HYBRID_TEST_BROKER"), set_as_current=False)
app.conf.update(
    task_default_queue="celery",
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get("TRANSPORT_TEST_OPTIONS", "{}")),
)


@app.task(name="transport.note", shared=False)
def note(text, seconds=0.0):
    time.sleep(seconds)
    with open(os.environ["TRANSPORT_TEST_FILE"], "a") as file:  # noqa: PTH123
        file.write(f"{text}\n")

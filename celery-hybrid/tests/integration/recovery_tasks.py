"""The application of the tests of ``celery tasks``: waiting and unacknowledged messages are in keys of their own."""

from __future__ import annotations

import os

from hybrid_tasks import make_app

from celery_hybrid.broker import transport

transport.install()

# Not the queue of the workers of other tests: an element that is not a message would end them.
QUEUE = f"{os.environ['CELERY_HYBRID_TEST_QUEUE']}-recovery"

app = make_app(
    broker_transport_options={
        "unacked_key": f"{QUEUE}.unacked",
        "unacked_index_key": f"{QUEUE}.unacked_index",
        "visibility_timeout": 3600,
    },
)
app.conf.task_default_queue = QUEUE

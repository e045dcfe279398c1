"""The application of the tests of ``celery tasks``: what is in hand is in keys of its own."""

from __future__ import annotations

import os

from hybrid_tasks import make_app

from celery_hybrid import transport

transport.install()

app = make_app(
    broker_transport_options={
        "unacked_key": f"{os.environ['CELERY_HYBRID_TEST_QUEUE']}.unacked",
        "unacked_index_key": f"{os.environ['CELERY_HYBRID_TEST_QUEUE']}.unacked_index",
        "visibility_timeout": 3600,
    },
)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application of the benchmarks: one task, and the settings that the ``worker`` role gives every worker.

Environment: ``BENCH_BROKER``, ``BENCH_RESULTS`` and ``BENCH_QUEUE``, which differ from side to side and nothing else.
"""

from __future__ import annotations

import os

from celery import Celery
from kombu import Queue

from tests.support.deployed import role_settings

app = Celery("bench")
app.conf.update(
    role_settings(),
    # Celery's own for all sides: ours needs our backend, and it is the backends that are compared.
    worker_consumer="celery.worker.consumer:Consumer",
    broker_url=os.environ["BENCH_BROKER"],
    result_backend=os.environ["BENCH_RESULTS"],
    # For the package with a queue for each task: its default is to lose everything with RabbitMQ.
    result_persistent=not os.environ["BENCH_RESULTS"].startswith("rpc"),
    result_expires=86400,
    task_default_queue=os.environ["BENCH_QUEUE"],
    task_queues=[Queue(os.environ["BENCH_QUEUE"])],
)


@app.task
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    """Add up numbers: the body of a chord."""
    return sum(numbers)

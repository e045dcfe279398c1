# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application of the fault scenario, with the settings that the ``worker`` role gives every worker.

Environment: ``CHAOS_BROKER``, ``CHAOS_RESULTS``, ``CHAOS_QUEUE``, ``CHAOS_SEED``, ``CHAOS_NOTES`` (a folder for
what the processes note), ``CHAOS_VISIBILITY`` (seconds) and ``CHAOS_OPTIONS`` (of the backend, JSON).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from typing import Any

from celery import Celery, states
from kombu import Queue

from celery_hybrid.delivery.outbox import Outbox
from celery_hybrid.delivery.writer import Writer
from celery_hybrid.rabbitmq.records import RESULT, Record
from tests.support.deployed import role_settings
from tests.support.notes import note

SEED = int(os.environ["CHAOS_SEED"])
CHORD = 10

_SMALLEST, _LARGEST = 100, 20_000
_IDS = uuid.UUID("8c7f0b8e-4d0b-4c3a-9a52-0f4d0a3f6f1e")


app = Celery("faults")
app.conf.update(
    role_settings(),
    broker_url=os.environ["CHAOS_BROKER"],
    result_backend=os.environ["CHAOS_RESULTS"],
    result_backend_transport_options=json.loads(os.environ["CHAOS_OPTIONS"]),
    result_expires=86400,
    task_default_queue=os.environ["CHAOS_QUEUE"],
    task_queues=[Queue(os.environ["CHAOS_QUEUE"])],
    # What a killed worker held comes back within the time of a phase.
    broker_transport_options={
        "visibility_timeout": float(os.environ["CHAOS_VISIBILITY"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)


# --- what is expected ------------------------------------------------------------------------------


def id_of(number: int, what: str = "task") -> str:
    """Return the id of a task, the same in every process and in every run with this seed."""
    return str(uuid.uuid5(_IDS, f"{SEED}/{what}/{number}"))


def fails(number: int) -> bool:
    """Return whether a task ends with an error: one of twenty does."""
    return random.Random(f"{SEED}/fails/{number}").random() < 0.05  # noqa: S311


def value_of(number: int) -> str:
    """Return what a task returns, or says in its error: 0.1 to 20 KB, small ones as frequent as large ones."""
    dice = random.Random(f"{SEED}/value/{number}")  # noqa: S311
    size = _SMALLEST * (_LARGEST / _SMALLEST) ** dice.random()
    return f"{number}:{dice.randbytes(int(size) // 2).hex()}"


def body_of(number: int) -> int:
    """Return what the body of a chord returns."""
    return sum(number + part for part in range(CHORD))


# --- tasks -----------------------------------------------------------------------------------------


@app.task(bind=True)
def work(self: Any, number: int, pause: float) -> str:
    """Note that it runs, take some time, and return its value or fail."""
    note("executed", number, self.request.id, f"{time.time():.3f}")
    time.sleep(pause)
    if fails(number):
        raise ValueError(value_of(number))
    return value_of(number)


@app.task
def part(number: int) -> int:
    """Note that it ran and return its number, for a chord."""
    note("parts", number)
    return number


@app.task
def total(numbers: list[int]) -> int:
    """Return a sum: the body of a chord."""
    return sum(numbers)


# --- which way a result went -----------------------------------------------------------------------


def watch() -> None:
    """Note for each final result whether RabbitMQ took it at once or the outbox did."""
    add, write = Outbox.add, Writer.write
    way = threading.local()

    def watched_add(self: Outbox, *args: Any, **kwargs: Any) -> None:
        add(self, *args, **kwargs)
        way.outbox = True

    def watched_write(self: Writer, record: Record, reply_to: str | None = None) -> None:
        way.outbox = False
        write(self, record, reply_to)
        if record.kind == RESULT and record.status in states.READY_STATES:
            note("stored", record.id, "outbox" if way.outbox else "direct")

    Outbox.add = watched_add
    Writer.write = watched_write


watch()

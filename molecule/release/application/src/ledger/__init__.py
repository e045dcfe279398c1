# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application that writes down each run of each task, so that a test can count them."""

from __future__ import annotations

import time
from functools import cache
from importlib.metadata import version

import redis
from celery import Celery, Task

app = Celery("ledger")
app.conf.beat_schedule = {"tick": {"task": "ledger.tick", "schedule": 1.0}}


@cache
def books() -> redis.Redis:
    """Return the client of the Redis server that keeps the counts."""
    return redis.Redis.from_url(app.conf.broker_url, socket_timeout=5, socket_connect_timeout=5)


@app.task(name="ledger.work", bind=True)
def work(self: Task, seconds: float) -> list[str]:
    """Take some time; return the version that ran it, and its node."""
    books().rpush("ledger:runs", self.request.id)
    time.sleep(seconds)
    return [version("ledger"), str(self.request.hostname)]


@app.task(name="ledger.tick")
def tick() -> None:
    """Write down that beat has sent this."""
    books().rpush("ledger:ticks", f"{time.time():.3f}")


@app.task(name="ledger.closing")
def closing() -> str:
    """Be queued while a version without this task is released."""
    return "closed"

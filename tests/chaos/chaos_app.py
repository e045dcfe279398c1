# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application of the chaos suite, for both sides: ours has the consumer, transport and guard of celery-hybrid, the
other one Celery's own. Everything else is the same: the settings of the ``worker`` role, and where results are.

Environment: that of ``outages_app``, and ``CHAOS_SIDE`` (``ours``, ``neighbour``, which is a second application like
it, or ``stock``) and ``CHAOS_CLIENT`` (set in clients, which have kombu's transport on both sides).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import redis
from celery import Celery, Task
from celery.exceptions import Reject
from kombu import Queue
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from celery_hybrid.broker import transport
from celery_hybrid.guard import BeingDoneError, Claim, Guard, LostClaimError
from tests.support.deployed import role_settings
from tests.support.notes import note

SIDE = os.environ["CHAOS_SIDE"]
OURS = SIDE != "stock"
SEED = int(os.environ["CHAOS_SEED"])
QUEUE = os.environ["CHAOS_QUEUE"]
UNDELIVERABLE = f"{QUEUE}.undeliverable"
PAUSE = 0.02
#: Longer than a run lasts that no fault holds up, shorter than the visibility timeout.
LEASE = 6
KEEP = 3600

_IDS = uuid.UUID("3d1f6a5e-52a1-4a53-8a0f-6c7e1f0a9d5b")

app = Celery("chaos")
app.conf.update(
    role_settings(),
    broker_url=os.environ["CHAOS_BROKER"],
    result_backend=os.environ["CHAOS_RESULTS"],
    result_backend_transport_options=json.loads(os.environ["CHAOS_OPTIONS"]),
    result_expires=86400,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE)],
    task_time_limit=60,
    broker_connection_timeout=5,
    broker_pool_limit=8,
    broker_transport_options={
        # What a killed worker held comes back within the time of a phase.
        "visibility_timeout": float(os.environ["CHAOS_VISIBILITY"]),
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        # As the role has it.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": True,
        "deadletter_queue": UNDELIVERABLE,
    },
    # A task that is to be retried may be sent while Redis is away: it is worth some patience.
    task_publish_retry_policy={"max_retries": 30, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 1.0},
    worker_consumer="celery_hybrid.worker.consumer:Consumer" if OURS else "celery.worker.consumer:Consumer",
    worker_dead_letters={"lost_retries": 3, "lost_retry_delay": 1} if OURS else None,
    # What Celery itself does about it, where our consumer does not.
    task_retry_on_worker_lost=not OURS,
)
if OURS and "CHAOS_CLIENT" not in os.environ:
    transport.install()


def id_of(number: int, what: str = "task") -> str:
    """Return the id of a task, the same in every process and in every run with this seed."""
    return str(uuid.uuid5(_IDS, f"{SEED}/{SIDE}/{what}/{number}"))


@cache
def server() -> redis.Redis:
    """Return this process's client of Redis for the guard, which waits for a Redis that is away."""
    patience = Retry(ExponentialBackoff(cap=1.0, base=0.1), 30)
    return redis.Redis.from_url(
        app.conf.broker_url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=10, retry=patience
    )


def act(number: int, claimed: float, seconds: float) -> None:
    """Have an effect on the outside world, which notes it. It knows the number, so it could tell a second one."""
    note("acts", number, f"{claimed:.3f}", f"{time.time():.3f}")
    time.sleep(seconds)


@contextlib.contextmanager
def noted(what: str, number: int, retries: int) -> Iterator[None]:
    """Note that a run begins, where, and that it has ended: done, or asking for another run."""
    note(what, number, retries, os.getpid(), os.getppid(), f"{time.time():.3f}")
    how = "again"
    try:
        yield
        how = "done"
    finally:
        note("ended", number, retries, os.getpid(), f"{time.time():.3f}", how)


@app.task(bind=True)
def work(self: Any, number: int, seconds: float = PAUSE) -> int:
    """Have one effect; with the guard, if it is ours."""
    with noted("executed", number, self.request.retries):
        if OURS:
            return guarded(self, number, seconds)
        act(number, time.time(), seconds)
        return number


def guarded(self: Any, number: int, seconds: float) -> int:
    """Have one effect with the guard."""
    guard = Guard(server(), lease=LEASE, keep=KEEP, prefix=f"{QUEUE}.guard.")
    try:
        # A claim runs from a moment after this one.
        begun = time.time()
        claim = guard.claim(str(number))
        if isinstance(claim, Claim):
            act(number, begun, seconds)
            guard.record(claim, number)
            note("receipts", number, f"{time.time():.3f}")
    except BeingDoneError as exc:
        raise self.retry(exc=exc, countdown=exc.seconds + 0.1, max_retries=self.request.retries + 1) from exc
    except (LostClaimError, redis.RedisError) as exc:
        # Nobody knows how it ended; the next run asks the guard.
        raise self.retry(exc=exc, countdown=1, max_retries=self.request.retries + 1) from exc
    return number


# --- bad tasks: the marker says which one it is ----------------------------------------------------


@app.task
def fails(marker: str) -> None:
    """Fail."""
    raise ValueError(marker)


@app.task
def rejects(marker: str) -> None:
    """Refuse the message."""
    raise Reject(marker, requeue=False)


@app.task
def dies(_marker: str) -> None:
    """Take its process along."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def eats(marker: str) -> None:
    """Run out of memory."""
    raise MemoryError(marker)


@app.task(time_limit=1)
def hangs(_marker: str) -> None:
    """Run into the hard time limit."""
    time.sleep(60)


@app.task(bind=True)
def fails_later(self: Any, marker: str) -> None:
    """Be retried once, by any worker, and fail."""
    if self.request.retries == 0:
        raise self.retry(countdown=1, max_retries=1)
    raise ValueError(marker)


# --- chords ----------------------------------------------------------------------------------------


@app.task
def part(value: int) -> int:
    """Be a part of a chord."""
    return value


@app.task(ignore_result=True)
def quiet(value: int) -> int:
    """Be a part whose result nobody asks for."""
    return value


@app.task(bind=True)
def body(self: Any, _values: list[Any], number: int, side: str) -> int:
    """Note for which chord of which application this runs."""
    with noted("bodies" if side == SIDE else "foreign", number, self.request.retries):
        return number


class _Closed(Task):  # type: ignore[misc]
    """Sent by code of its own, which fails."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Fail in a worker."""
        raise PermissionError("closed")


@app.task(base=_Closed)
def closed(_values: list[Any], number: int, side: str) -> int:
    """Be a body that cannot be sent."""
    return number


@app.task
def errback(_request: Any, _error: Any, _traceback: Any, what: str) -> None:
    """Be an errback that takes its time, or ends its process."""
    if what == "exits":
        sys.exit(1)
    time.sleep(5)

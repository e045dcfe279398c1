"""What became of tasks, counted in a worker's main process.

The pool tells the main process of every task that begins or ends, whatever kind of pool it is; that is where counting
is exact, costs some microseconds, and survives the death of a child.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from celery_hybrid.broker.sent import SENT_HEADER
from celery_hybrid.dead_letters.letter import REPLAYS_HEADER

#: Upper bounds of the histograms' buckets, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: Classes of exceptions that get a label of their own; further ones share "other".
MOST_EXCEPTIONS = 50
OTHER = "other"


class Distribution:
    """A histogram. Who changes it holds a lock.

    Attributes:
        counts: observations in each bucket, and above the last.
        total: their sum.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.total += value


def cumulative(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus wants them: each counts what is below it as well."""
    buckets, below = [], 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


class TaskTotals:
    """Counts of the tasks of one name that came from one queue."""

    __slots__ = ("failed", "lock", "received", "redelivered", "rejected", "retried", "revoked", "runtime", "started",
                 "succeeded", "wait")  # fmt: skip

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.received = self.redelivered = self.started = self.succeeded = 0
        self.retried = self.rejected = self.revoked = 0
        self.failed: Counter[str] = Counter()
        self.runtime = Distribution()
        self.wait = Distribution()


#: Names of danihodovic's exporter, and ours in the same manner; each is an attribute of :class:`TaskTotals`.
_COUNTERS = {
    "received": "Tasks that this worker has taken from the broker, and that are neither revoked nor expired.",
    "redelivered": "Tasks among them that another worker, or this one, had taken before.",
    "started": "Tasks that the pool has begun.",
    "succeeded": "Tasks that succeeded.",
    "retried": "Tasks that are to be run again.",
    "rejected": "Tasks that rejected their message.",
    "revoked": "Tasks that were revoked, or had expired.",
}


class TaskCounts:
    """A collector of what became of tasks.

    Args:
        hostname: of the worker, for the label that dashboards of other exporters select by.
        queues: returns the names of the queues that are known; others share a label.
        clock: returns seconds since the epoch.
    """

    def __init__(self, hostname: str, queues: Callable[[], Any], clock: Callable[[], float] = time.time) -> None:
        self._hostname = hostname
        self._queues = queues
        self._clock = clock
        self._tasks: dict[tuple[str, str], TaskTotals] = {}
        self._exceptions: set[str] = set()

    def of(self, name: str, delivery_info: Mapping[str, Any] | None) -> TaskTotals:
        """Return the counts of a task, by its name and by what Celery knows of its delivery."""
        queue = (delivery_info or {}).get("routing_key") or ""
        tasks = self._tasks.get((name, queue))
        if tasks is None:
            known = queue if queue in self._queues() else OTHER
            tasks = self._tasks.setdefault((name, known), TaskTotals())
        return tasks

    # The worker reports

    def on_received(self, request: Any) -> None:
        """A message was taken."""
        tasks = self.of(request.name, request.delivery_info)
        with tasks.lock:
            tasks.received += 1
            if (request.delivery_info or {}).get("redelivered"):
                tasks.redelivered += 1

    def on_started(self, request: Any) -> None:
        """The pool has begun the task."""
        wait = self._wait(request)
        tasks = self.of(request.name, request.delivery_info)
        with tasks.lock:
            tasks.started += 1
            if wait is not None:
                tasks.wait.observe(wait)

    def on_ended(self, request: Any, failure: BaseException | None, runtime: float | None) -> None:
        """The task has ended.

        Args:
            request: the worker's.
            failure: the exception that it ended with.
            runtime: seconds that it ran for, if they are known.
        """
        tasks = self.of(request.name, request.delivery_info)
        with tasks.lock:
            if runtime is not None:
                tasks.runtime.observe(runtime)
            if failure is None:
                tasks.succeeded += 1
            elif isinstance(failure, Retry) or getattr(request, "_again", False):
                tasks.retried += 1
            elif isinstance(failure, Reject):
                tasks.rejected += 1
            elif not isinstance(failure, Ignore):
                tasks.failed[self._class_of(failure)] += 1

    def on_revoked(self, name: str, delivery_info: Mapping[str, Any] | None) -> None:
        """The task does not run, or was ended."""
        tasks = self.of(name, delivery_info)
        with tasks.lock:
            tasks.revoked += 1

    def _wait(self, request: Any) -> float | None:
        """Return for how long a task could have run and did not; None when that is not known.

        The sender's clock and ours may differ, so this is at least 0.
        """
        headers = request.request_dict
        sent = headers.get(SENT_HEADER)
        if not isinstance(sent, (int, float)) or headers.get(REPLAYS_HEADER):
            return None
        if (request.delivery_info or {}).get("redelivered"):
            return None
        due = request.eta.timestamp() if request.eta else 0.0
        return max(0.0, self._clock() - max(float(sent), due))

    def _class_of(self, exc: BaseException) -> str:
        # What cannot be pickled comes from the pool in a wrapper, with its name.
        name = getattr(exc, "exc_cls_name", None)
        name = name if isinstance(name, str) else type(exc).__name__
        if name not in self._exceptions:
            if len(self._exceptions) >= MOST_EXCEPTIONS:
                return OTHER
            self._exceptions.add(name)
        return name

    # Prometheus asks

    def collect(self) -> Iterator[Metric]:
        """Return what has been counted."""
        labels = ["name", "hostname", "queue_name"]
        known = list(self._tasks.items())
        for attribute, words in _COUNTERS.items():
            counter = CounterMetricFamily(f"celery_task_{attribute}", words, labels=labels)
            for (name, queue), tasks in known:
                counter.add_metric([name, self._hostname, queue], getattr(tasks, attribute))
            yield counter
        failed = CounterMetricFamily(
            "celery_task_failed",
            "Tasks that failed for good, by the class of the exception.",
            labels=[*labels, "exception"],
        )
        runtime = HistogramMetricFamily("celery_task_runtime", "Seconds that tasks ran for.", labels=labels)
        wait = HistogramMetricFamily(
            "celery_task_queue_wait_time", "Seconds from when a task was sent, or due, until it began.", labels=labels
        )
        for (name, queue), tasks in known:
            values = [name, self._hostname, queue]
            with tasks.lock:
                failures = dict(tasks.failed)
                seen = [(each.counts[:], each.total) for each in (tasks.runtime, tasks.wait)]
            for exception, count in failures.items():
                failed.add_metric([*values, exception], count)
            for histogram, (counts, total) in zip((runtime, wait), seen, strict=True):
                histogram.add_metric(values, cumulative(BUCKETS, counts), total)
        yield from (failed, runtime, wait)


def inner(exc: Any) -> BaseException:
    """Return an exception without the wrapper that billiard puts it in for the sake of its traceback."""
    found: BaseException = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
    return found

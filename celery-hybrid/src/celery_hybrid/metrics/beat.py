"""The metrics of beat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from celery_hybrid.metrics.exposition import Exposition


def begin(service: Any, address: tuple[str, int]) -> None:
    """Let beat serve its metrics; what Celery's signal ``beat_init`` calls."""
    exposition = Exposition(address)
    exposition.registry.register(Schedule(service.scheduler))
    exposition.start()


class Schedule:
    """A collector of what beat does. It looks at the schedule when beat does: some schedules are in a database.

    Args:
        scheduler: Celery's, or a scheduler of another package.
        clock: returns seconds from a monotonic clock.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._ticked = clock()
        self._lag = 0.0
        self._entries = 0
        self._sent: dict[str, tuple[int, float]] = {}
        self._failed: dict[str, int] = {}
        self._tick, self._apply_async = scheduler.tick, scheduler.apply_async
        scheduler.tick, scheduler.apply_async = self._on_tick, self._on_send

    def _on_tick(self, *args: Any, **kwargs: Any) -> Any:
        heap = getattr(self._scheduler, "_heap", None) or ()
        self._entries = len(heap)
        if heap:
            due, _, entry = heap[0]
            self._lag = max(0.0, self._scheduler._when(entry, 0) - due)
        self._ticked = self._clock()
        return self._tick(*args, **kwargs)

    def _on_send(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            sent = self._apply_async(entry, *args, **kwargs)
        except Exception:
            self._failed[entry.name] = self._failed.get(entry.name, 0) + 1
            raise
        self._sent[entry.name] = (self._sent.get(entry.name, (0, 0.0))[0] + 1, time.time())
        return sent

    def collect(self) -> Iterator[Metric]:
        """Return what is known."""
        yield GaugeMetricFamily("celery_beat_up", "Always 1; absent while beat is down.", 1)
        yield GaugeMetricFamily("celery_beat_entries", "Periodic tasks in the schedule.", self._entries)
        longest = "Longest time in seconds between two checks of beat's schedule."
        yield GaugeMetricFamily("celery_beat_max_interval_seconds", longest, self._scheduler.max_interval)
        age = "Seconds since beat last checked its schedule."
        yield GaugeMetricFamily("celery_beat_tick_age_seconds", age, self._clock() - self._ticked)
        lag = "Seconds by which the first task was late at beat's last check."
        yield GaugeMetricFamily("celery_beat_lag_seconds", lag, self._lag)
        sent = CounterMetricFamily("celery_beat_sent", "Periodic tasks that were sent.", labels=["name"])
        last = GaugeMetricFamily(
            "celery_beat_last_sent_timestamp_seconds", "When a task was sent last.", labels=["name"]
        )
        for name, (count, at) in list(self._sent.items()):
            sent.add_metric([name], count)
            last.add_metric([name], at)
        failed = CounterMetricFamily("celery_beat_failures", "Periodic tasks that could not be sent.", labels=["name"])
        for name, count in list(self._failed.items()):
            failed.add_metric([name], count)
        yield from (sent, last, failed)

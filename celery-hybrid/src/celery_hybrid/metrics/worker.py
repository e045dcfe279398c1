"""The metrics of a worker."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import celery
from celery import bootsteps, signals
from celery.worker import state as worker_state
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from celery_hybrid.delivery.relay import CLOSED
from celery_hybrid.metrics.counts import TaskCounts, cumulative, inner
from celery_hybrid.metrics.exposition import Exposition
from celery_hybrid.results import latency as shared
from celery_hybrid.results.store import stores_of
from celery_hybrid.worker.systemd import WorkerHealth

logger = logging.getLogger(__name__)

#: Seconds between two looks at what cannot be asked within a scrape, such as a file.
SAMPLE_SECONDS = 5.0
_BOXES = {"outbox": "results", "dead_letters": "dead_letters"}


def begin(worker: Any, address: tuple[str, int]) -> None:
    """Let a worker that is being made serve its metrics; what Celery's signal ``celeryd_init`` calls."""
    Step.address = address
    worker.app.steps["worker"].add(Step)


class Step(bootsteps.StartStopStep):  # type: ignore[misc]
    """Counts from before the pool makes its first child, and serves when the pool is there."""

    requires = ("celery.worker.components:Pool",)
    address: tuple[str, int]

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._exposition: Exposition | None = None
        self._sampler: Sampler | None = None
        self._table = shared.begin()
        signals.worker_process_init.connect(shared.child_begins, weak=False, dispatch_uid=__name__)

    def start(self, worker: Any) -> None:
        """Begin."""
        if self._exposition is not None:
            return
        app = worker.app
        hostname = worker.hostname.partition("@")[2]
        counts = TaskCounts(hostname, lambda: app.amqp.queues)
        count_pool(worker.pool, counts)
        count_signals(counts)
        self._sampler = Sampler(app)
        self._exposition = Exposition(self.address)
        for collector in (counts, WorkerState(worker, hostname), ResultMetrics(self._sampler, self._table)):
            self._exposition.registry.register(collector)
        self._sampler.start()
        self._exposition.start()

    def stop(self, _: Any) -> None:
        """End: tasks that still run are of no more interest to Prometheus than that this worker is going."""
        if self._exposition is not None and self._sampler is not None:
            self._exposition.stop()
            self._sampler.stop()

    terminate = stop


def count_signals(counts: TaskCounts) -> None:
    """Count what Celery has signals for in the main process."""

    def received(request: Any, **_: Any) -> None:
        counts.on_received(request)

    def revoked(sender: Any, request: Any, **_: Any) -> None:
        # Here it is the task's context.
        counts.on_revoked(sender.name, request.delivery_info)

    signals.task_received.connect(received, weak=False, dispatch_uid=__name__)
    signals.task_revoked.connect(revoked, weak=False, dispatch_uid=__name__)


def count_pool(pool: Any, counts: TaskCounts) -> None:
    """Count what a pool begins and ends, before the consumer gets to know the pool."""
    apply_async: Callable[..., Any] = pool.apply_async

    def counted(
        target: Any, args: Any = (), kwargs: Any = None, *, callback: Any = None, accept_callback: Any = None,
        error_callback: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        request = getattr(callback, "__self__", None)
        if request is None or not hasattr(request, "request_dict"):
            return apply_async(
                target, args, kwargs, callback=callback, accept_callback=accept_callback,
                error_callback=error_callback, **options,
            )  # fmt: skip

        def accepted(*values: Any, **named: Any) -> Any:
            counts.on_started(request)
            return accept_callback(*values, **named)

        def ended(outcome: Any, **named: Any) -> Any:
            failed, value, runtime = outcome
            try:
                return callback(outcome, **named)
            finally:
                counts.on_ended(request, inner(value.exception) if failed else None, runtime)

        def broken(info: Any, *values: Any, **named: Any) -> Any:
            try:
                return error_callback(info, *values, **named)
            finally:
                if not request._already_revoked:
                    counts.on_ended(request, inner(info.exception), None)

        return apply_async(
            target, args, kwargs, callback=ended, accept_callback=accepted, error_callback=broken, **options
        )

    pool.apply_async = counted


class WorkerState:
    """A collector of what a worker is doing.

    Args:
        worker: Celery's.
        hostname: for the label.
    """

    def __init__(self, worker: Any, hostname: str) -> None:
        self._worker = worker
        self._hostname = hostname
        self._health: WorkerHealth | None = None
        self._waits = {"broker": Waits(worker.app.pool), "producers": Waits(worker.app.producer_pool)}

    def collect(self) -> Iterator[Metric]:
        """Return the state of this moment."""
        worker, host = self._worker, self._hostname
        yield InfoMetricFamily(
            "celery_worker",
            "This worker.",
            {
                "worker": worker.hostname,
                "hostname": host,
                "pool": type(worker.pool).__module__.rpartition(".")[2],
                "version": importlib.metadata.version("celery-hybrid"),
                "celery_version": celery.__version__,
            },
        )
        for name, words, value in self._values():
            gauge = GaugeMetricFamily(f"celery_worker_{name}", words, labels=["hostname"])
            gauge.add_metric([host], value)
            yield gauge
        yield from self._pools()
        letters = CounterMetricFamily(
            "celery_dead_letters", "Messages that were dead-lettered, by reason.", labels=["reason"]
        )
        for reason, count in copied(getattr(getattr(worker.consumer, "dead_letters", None), "counts", {})).items():
            letters.add_metric([reason], count)
        yield letters
        consumers = GaugeMetricFamily(
            "celery_active_consumer_count",
            "Whether this worker consumes a queue; the sum is of all.",
            labels=["queue_name"],
        )
        for queue in list(worker.app.amqp.queues.consume_from):
            consumers.add_metric([queue], 1)
        yield consumers

    def _values(self) -> Iterator[tuple[str, str, float]]:
        worker, consumer = self._worker, self._worker.consumer
        yield "up", "Always 1; absent while the worker is down.", 1
        yield "tasks_active", "Running tasks.", len(worker_state.active_requests)
        yield (
            "tasks_reserved",
            "Tasks that were taken, and run or wait for a process.",
            len(worker_state.reserved_requests),
        )
        # Celery 5.7 knows them.
        scheduled = len(getattr(worker_state, "scheduled_requests", ()))
        yield "tasks_scheduled", "Tasks that were taken, and wait for their time.", scheduled
        yield "concurrency", "Tasks that can run at the same time.", worker.pool.num_processes
        processes = getattr(getattr(worker.pool, "_pool", None), "_pool", None)
        yield "pool_processes", "Processes of the pool; 0 for pools without.", len(processes or ())
        if consumer is None:
            return
        if self._health is None:
            self._health = WorkerHealth(consumer)
        yield (
            "loop_age_seconds",
            "Seconds since the event loop's last known iteration.",
            self._health.loop_age(),
        )
        attempt = getattr(consumer, "broker_connection_retry_attempt", 0)
        yield "broker_attempts", "Failed attempts to reach the broker since it was lost; 0 while connected.", attempt

    def _pools(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "celery_pool_used", "Connections of a pool in use, in the main process.", labels=["pool"]
        )
        limit = GaugeMetricFamily(
            "celery_pool_limit", "Connections that a pool may open; 0 for no limit.", labels=["pool"]
        )
        waits = CounterMetricFamily("celery_pool_waits", "How often a pool had no free connection.", labels=["pool"])
        for name, pool in (("broker", self._worker.app.pool), ("producers", self._worker.app.producer_pool)):
            used.add_metric([name], len(pool._dirty))
            limit.add_metric([name], pool.limit or 0)
            waits.add_metric([name], self._waits[name].count)
        yield from (used, limit, waits)


class Waits:
    """Counts how often a pool of kombu had nothing to give.

    Args:
        pool: kombu's.
    """

    def __init__(self, pool: Any) -> None:
        self.count = 0
        self._lock = threading.Lock()
        acquire = pool.acquire

        def counted(*args: Any, **kwargs: Any) -> Any:
            if pool.limit and len(pool._dirty) >= pool.limit:
                with self._lock:
                    self.count += 1
            return acquire(*args, **kwargs)

        pool.acquire = counted


class Sampler:
    """A thread that looks, every few seconds, at what a scrape must not wait for.

    Args:
        app: the worker's application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._stopping = threading.Event()
        self._said = ""
        #: What the result store has said last.
        self.state: dict[str, Any] = {}

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="celery-hybrid samples", daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()

    def look(self) -> None:
        """Look once."""
        stores = stores_of(self._app)
        if stores:
            self.state = stores[0].state() | {"chords": ages_of(stores[0].chords.unfinished)}

    def _run(self) -> None:
        while True:
            try:
                self.look()
                self._said = ""
            except Exception as exc:
                if repr(exc) != self._said:
                    self._said = repr(exc)
                    logger.warning("The metrics of the result store are out of date: %r", exc)
            if self._stopping.wait(SAMPLE_SECONDS):
                return


def ages_of(unfinished: dict[str, Any]) -> dict[str, float]:
    """Return the counts and ages of chords as metrics show them; nothing when they are not known."""
    if not unfinished:
        return {}
    rows = unfinished["oldest"]
    complete = [row["complete_seconds"] for row in rows if row["complete_seconds"] is not None]
    return {
        "open": unfinished["open"],
        "complete": unfinished["complete"],
        "open_seconds": max((row["seconds"] for row in rows), default=0),
        "complete_seconds": max(complete, default=0),
    }


class ResultMetrics:
    """A collector of what the result store says, and of what all processes of the worker have stored.

    Args:
        sampler: which knows the state.
        table: in which the processes count.
    """

    def __init__(self, sampler: Sampler, table: shared.Table) -> None:
        self._sampler = sampler
        self._table = table

    def collect(self) -> Iterator[Metric]:
        """Return what is known."""
        seconds, *counts, failed = self._table.sums()
        latency = HistogramMetricFamily(
            "celery_result_store_seconds", "Seconds until a result was confirmed, or in the outbox."
        )
        latency.add_metric([], cumulative(shared.STORE_BUCKETS, counts), seconds)
        yield latency
        yield CounterMetricFamily("celery_result_store_failures", "Results that could not be stored.", failed)
        state = self._sampler.state
        refused = CounterMetricFamily(
            "celery_result_refused", "Results that were not accepted, by reason.", labels=["reason"]
        )
        for reason, count in (state.get("refused_results") or {}).items():
            refused.add_metric([reason], count)
        yield refused
        if state.get("circuit"):
            words = "Whether results go to the outbox because RabbitMQ does not accept them."
            yield GaugeMetricFamily("celery_result_circuit_open", words, float(state["circuit"] != CLOSED))
        yield from self._outboxes(state)
        chords = state.get("chords") or {}
        for name, words in _CHORDS.items() if chords else ():
            yield GaugeMetricFamily(f"celery_chords_{name}", words, chords[name])

    def _outboxes(self, state: dict[str, Any]) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for key, kind in _BOXES.items():
            box = state.get(key) or {}
            for name, (field, words) in _DEPTH.items():
                make = CounterMetricFamily if name == "dropped" else GaugeMetricFamily
                family = families.setdefault(name, make(f"celery_outbox_{name}", words, labels=["kind"]))
                if field in box:
                    family.add_metric([kind], box[field] or 0)
            if "error" in box:
                families.setdefault("unreadable", GaugeMetricFamily(
                    "celery_outbox_unreadable", "Whether the outbox cannot be used.", labels=["kind"],
                )).add_metric([kind], 1)  # fmt: skip
        yield from families.values()


#: Chords are counted in Redis: all workers of a broker show the same.
_CHORDS = {
    "open": "Chords in Redis of whose header at least one task has ended, and whose body has not been sent.",
    "complete": "Those of them of whose header all tasks have ended.",
    "open_seconds": "Seconds since the first task of the oldest open one ended; 0 for none.",
    "complete_seconds": "Seconds that the oldest complete one has waited for its body to be sent; 0 for none.",
}
#: The outbox is a file of the host: all workers of a host show the same.
_DEPTH = {
    "records": ("count", "Records on this host that wait for RabbitMQ."),
    "bytes": ("size", "Their bytes."),
    "oldest_timestamp_seconds": ("oldest", "When the oldest was stored; 0 when none waits."),
    "refused": ("refused", "Records that RabbitMQ will never take, kept for a person to look at."),
    "dropped": ("dropped", "Records that were dropped because the outbox was full."),
}


def copied(counts: dict[str, int]) -> dict[str, int]:
    """Return a copy of a mapping that another thread changes meanwhile."""
    while True:
        try:
            return dict(counts)
        except RuntimeError:
            continue

"""Counting of tasks and results, without a worker."""

from __future__ import annotations

import os
import threading
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from celery.exceptions import Ignore, Reject, Retry

pytest.importorskip("prometheus_client")
from prometheus_client import CollectorRegistry

from celery_hybrid import metrics
from celery_hybrid.broker import sent
from celery_hybrid.errors import OptionError
from celery_hybrid.metrics import counts
from celery_hybrid.metrics import worker as worker_metrics
from celery_hybrid.metrics.beat import Schedule
from celery_hybrid.results import latency as shared

NOW = 1_000_000.0


def request(name="shop.pay", queue="celery", redelivered=False, eta=None, **headers):
    return SimpleNamespace(
        name=name,
        delivery_info={"routing_key": queue, "redelivered": redelivered},
        request_dict=headers,
        eta=eta,
        _already_revoked=False,
    )


@pytest.fixture
def tasks():
    return counts.TaskCounts("host1", lambda: {"celery"}, clock=lambda: NOW)


@pytest.fixture
def value(tasks):
    registry = CollectorRegistry()
    registry.register(tasks)

    def found(metric, **labels):
        return registry.get_sample_value(
            metric, {"name": "shop.pay", "hostname": "host1", "queue_name": "celery", **labels}
        )

    return found


@pytest.mark.parametrize(
    ("exc", "metric"),
    [
        (None, "celery_task_succeeded_total"),
        (Retry(), "celery_task_retried_total"),
        (Reject(), "celery_task_rejected_total"),
    ],
)
def test_task_that_ended_is_counted_under_one_name(tasks, value, exc, metric):
    tasks.on_ended(request(), exc, 0.2)
    names = ("succeeded", "retried", "rejected")
    assert {name: value(f"celery_task_{name}_total") for name in names} == {
        name: float(metric == f"celery_task_{name}_total") for name in names
    }
    assert value("celery_task_runtime_sum") == pytest.approx(0.2)


def test_ignored_task_is_neither_success_nor_failure(tasks, value):
    tasks.on_ended(request(), Ignore(), 0.2)
    assert value("celery_task_succeeded_total") == 0
    assert value("celery_task_failed_total", exception="Ignore") is None


def test_lost_task_that_is_sent_again_counts_as_retried(tasks, value):
    lost = request()
    lost._again = True
    tasks.on_ended(lost, RuntimeError(), None)
    assert value("celery_task_retried_total") == 1
    assert value("celery_task_runtime_count") == 0


def test_failure_that_could_not_be_pickled_counts_under_its_own_class(tasks, value):
    wrapped = RuntimeError()
    wrapped.exc_cls_name = "PaymentError"
    tasks.on_ended(request(), wrapped, 0.2)
    assert value("celery_task_failed_total", exception="PaymentError") == 1


def test_many_classes_of_exceptions_make_a_bounded_number_of_series(tasks, value):
    for number in range(counts.MOST_EXCEPTIONS + 7):
        tasks.on_ended(request(), type(f"Error{number}", (Exception,), {})(), 0.1)
    assert value("celery_task_failed_total", exception="other") == 7


def test_revoked_task_is_counted(tasks, value):
    tasks.on_revoked("shop.pay", {"routing_key": "celery"})
    tasks.on_revoked("shop.pay", None)
    assert value("celery_task_revoked_total") == 1
    assert value("celery_task_revoked_total", queue_name="other") == 1


def test_queue_that_is_not_declared_shares_a_label(tasks, value):
    for number in range(3):
        tasks.on_received(request(queue=f"made-up-{number}"))
    assert value("celery_task_received_total", queue_name="other") == 3


@pytest.mark.parametrize(
    ("headers", "observed", "seconds"),
    [
        ({"x-sent": NOW - 3}, 1, 3),
        ({"x-sent": NOW + 60}, 1, 0),
        ({}, 0, 0),
        ({"x-sent": "yesterday"}, 0, 0),
        ({"x-sent": NOW - 86400, "x-replays": 1}, 0, 0),
    ],
    ids=["sent", "clock ahead", "foreign sender", "not a number", "replayed"],
)
def test_wait_in_the_queue_is_measured_when_it_is_known(tasks, value, headers, observed, seconds):
    tasks.on_started(request(**headers))
    assert value("celery_task_queue_wait_time_count") == observed
    assert value("celery_task_queue_wait_time_sum") == seconds


def test_time_until_an_eta_is_not_a_wait(tasks, value):
    due = datetime.fromtimestamp(NOW - 2, UTC)
    tasks.on_started(request(eta=due, **{"x-sent": NOW - 3600}))
    assert value("celery_task_queue_wait_time_sum") == 2


def test_redelivered_task_is_counted_and_its_wait_is_not_measured(tasks, value):
    again = request(redelivered=True, **{"x-sent": NOW - 3600})
    tasks.on_received(again)
    tasks.on_started(again)
    assert value("celery_task_redelivered_total") == 1
    assert value("celery_task_queue_wait_time_count") == 0


def test_buckets_count_what_is_below_them_as_well():
    distribution = counts.Distribution()
    for seconds in (0.005, 0.02, 7200):
        distribution.observe(seconds)
    buckets = dict(counts.cumulative(counts.BUCKETS, distribution.counts))
    assert (buckets["0.005"], buckets["0.025"], buckets["1800.0"], buckets["+Inf"]) == (1, 2, 2, 3)


def test_sender_stamps_each_message_with_the_time():
    headers = {"id": "1", sent.SENT_HEADER: 1.0}
    sent.stamp(headers=headers)
    assert headers[sent.SENT_HEADER] > NOW
    sent.stamp(headers={})


class Pool:
    """Runs tasks at once, as the solo pool does."""

    def __init__(self, outcome):
        self.outcome = outcome

    def apply_async(self, target, args, kwargs, callback, accept_callback, error_callback, **options):
        accept_callback(1, 2.0)
        kind, value = self.outcome
        (callback if kind == "callback" else error_callback)(value)
        return options


class WorkerRequest(SimpleNamespace):
    def on_accepted(self, pid, time_accepted):
        self.calls.append("accepted")

    def on_success(self, outcome):
        self.calls.append("success")

    def on_failure(self, info):
        self.calls.append("failure")


@pytest.mark.parametrize(
    ("outcome", "calls", "ended"),
    [
        (("callback", (0, "result", 0.5)), ["accepted", "success"], "celery_task_succeeded_total"),
        (
            ("callback", (1, SimpleNamespace(exception=Retry()), 0.5)),
            ["accepted", "success"],
            "celery_task_retried_total",
        ),
        (("error", SimpleNamespace(exception=Reject())), ["accepted", "failure"], "celery_task_rejected_total"),
    ],
)
def test_pool_reports_to_the_request_and_is_counted(tasks, value, outcome, calls, ended):
    pool = Pool(outcome)
    worker_metrics.count_pool(pool, tasks)
    made = WorkerRequest(**vars(request()), calls=[])
    options = pool.apply_async(
        None,
        (),
        {},
        callback=made.on_success,
        accept_callback=made.on_accepted,
        error_callback=made.on_failure,
        timeout=3,
    )
    assert options == {"timeout": 3}
    assert made.calls == calls
    assert value("celery_task_started_total") == value(ended) == 1


def test_task_whose_request_raises_is_counted_all_the_same(tasks, value):
    pool = Pool(("callback", (0, "result", 0.5)))
    worker_metrics.count_pool(pool, tasks)
    made = WorkerRequest(**vars(request()), calls=None)
    made.on_accepted = lambda *_: None
    with pytest.raises(AttributeError):
        pool.apply_async(None, callback=made.on_success, accept_callback=made.on_accepted)
    assert value("celery_task_succeeded_total") == 1


def test_processes_count_in_rows_of_their_own_and_the_parent_sees_the_sum():
    table = shared.Table()
    table.stored(0.002)
    for index in (0, 1, 0):
        child = os.fork()
        if not child:
            table.enter(index)
            table.stored(0.2)
            table.stored(0.0, failed=True)
            os._exit(0)
        os.waitpid(child, 0)
    seconds, *buckets, failed = table.sums()
    assert seconds == pytest.approx(0.602)
    assert (sum(buckets), failed) == (4, 3)


def test_child_beyond_the_table_is_not_counted():
    table = shared.Table()
    table.enter(shared.ROWS)
    table.stored(1.0)
    assert not any(table.sums())


def test_threads_of_a_process_lose_no_count():
    table = shared.Table()

    def many():
        for _ in range(2000):
            table.stored(0.001)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(table.sums()[1:-1]) == 8000


def test_result_that_was_not_stored_is_a_failure(monkeypatch):
    table = shared.Table()
    monkeypatch.setattr(shared._Process, "table", table)
    with pytest.raises(ValueError, match="no"), shared.storing():
        raise ValueError("no")
    with shared.storing():
        pass
    assert (sum(table.sums()[1:-1]), table.sums()[-1]) == (1, 1)


def test_storing_without_metrics_measures_nothing(monkeypatch):
    monkeypatch.setattr(shared._Process, "table", None)
    with shared.storing():
        pass


def test_pool_that_has_nothing_to_give_counts_a_wait():
    pool = SimpleNamespace(limit=1, _dirty=set(), acquire=lambda block: block)
    waits = worker_metrics.Waits(pool)
    assert pool.acquire(block=True) is True
    pool._dirty.add("connection")
    pool.acquire(block=False)
    assert waits.count == 1


@pytest.fixture
def results(monkeypatch):
    """The samples of a result store that says what the test wants."""

    def samples(state, unfinished=None):
        store = SimpleNamespace(state=lambda: state, chords=SimpleNamespace(unfinished=unfinished or {}))
        monkeypatch.setattr(worker_metrics, "stores_of", lambda app: [store])
        sampler = worker_metrics.Sampler(None)
        sampler.look()
        registry = CollectorRegistry()
        registry.register(worker_metrics.ResultMetrics(sampler, shared.Table()))
        return registry.get_sample_value

    return samples


def test_outbox_and_circuit_are_shown(results):
    box = {"count": 3, "size": 900, "oldest": 1700000000, "refused": 1, "dropped": 2}
    value = results({"circuit": "open", "refused_results": {"kind": 4}, "outbox": box, "dead_letters": box})
    assert value("celery_result_circuit_open") == 1
    assert value("celery_result_refused_total", {"reason": "kind"}) == 4
    for kind in ("results", "dead_letters"):
        assert value("celery_outbox_records", {"kind": kind}) == 3
        assert value("celery_outbox_bytes", {"kind": kind}) == 900
        assert value("celery_outbox_oldest_timestamp_seconds", {"kind": kind}) == 1700000000
        assert value("celery_outbox_dropped_total", {"kind": kind}) == 2


def test_chords_are_shown_with_the_ages_of_the_oldest(results):
    rows = [{"seconds": 90, "complete_seconds": None}, {"seconds": 40, "complete_seconds": 31}]
    value = results({}, {"open": 7, "complete": 1, "oldest": rows})
    names = ("open", "complete", "open_seconds", "complete_seconds")
    assert [value(f"celery_chords_{name}") for name in names] == [7, 1, 90, 31]


def test_chords_are_shown_as_none_when_none_is_open_and_not_at_all_while_redis_does_not_answer(results):
    assert results({}, {"open": 0, "complete": 0, "oldest": []})("celery_chords_complete_seconds") == 0
    assert results({})("celery_chords_open") is None


def test_outbox_that_cannot_be_read_is_shown_as_such(results):
    value = results({"circuit": "closed", "outbox": {"path": "/x", "error": "disk I/O error"}})
    assert value("celery_result_circuit_open") == 0
    assert value("celery_outbox_unreadable", {"kind": "results"}) == 1
    assert value("celery_outbox_records", {"kind": "results"}) is None


def test_store_that_says_nothing_yet_breaks_no_scrape(results):
    assert results({})("celery_result_store_seconds_count") == 0


def test_copy_of_counts_survives_their_change():
    assert worker_metrics.copied(Counter({"failed": 2})) == {"failed": 2}


@pytest.mark.parametrize("listen", ["9810", "127.0.0.1:", "127.0.0.1:http", ":9810", "127.0.0.1:70000"])
def test_address_that_is_none_is_refused_with_an_example(listen):
    with pytest.raises(OptionError, match=r"127\.0\.0\.1:9810"):
        metrics.install(listen)


def test_no_address_connects_nothing(monkeypatch):
    monkeypatch.setattr(metrics.signals.celeryd_init, "connect", None)
    metrics.install("")


def test_missing_library_is_an_error_in_the_log_and_no_exception(monkeypatch, caplog):
    def missing(name):
        raise ModuleNotFoundError(name="prometheus_client")

    monkeypatch.setattr(metrics.importlib, "import_module", missing)
    assert metrics._part("worker") is None
    assert "Install celery-hybrid[metrics]" in caplog.text


class Scheduler:
    max_interval = 300

    def __init__(self):
        self._heap = [(100.0, 5, SimpleNamespace(name="first"))]
        self.fails = False

    def _when(self, entry, seconds):
        return 107.5 + seconds

    def tick(self):
        return 1.0

    def apply_async(self, entry):
        if self.fails:
            raise ConnectionError
        return "sent"


def test_beat_shows_schedule_lag_and_what_was_sent():
    scheduler = Scheduler()
    now = [50.0]
    registry = CollectorRegistry()
    registry.register(Schedule(scheduler, clock=lambda: now[0]))
    entry = SimpleNamespace(name="first")
    assert scheduler.tick() == 1.0
    assert scheduler.apply_async(entry) == "sent"
    scheduler.fails = True
    with pytest.raises(ConnectionError):
        scheduler.apply_async(entry)
    now[0] = 62.0
    value = registry.get_sample_value
    assert value("celery_beat_entries") == 1
    assert value("celery_beat_lag_seconds") == 7.5
    assert value("celery_beat_tick_age_seconds") == 12
    assert value("celery_beat_sent_total", {"name": "first"}) == 1
    assert value("celery_beat_failures_total", {"name": "first"}) == 1

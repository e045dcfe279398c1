"""What workers and beat say of themselves over HTTP, beside tasks that really ran."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
from environment import needed
from runs import wait_until

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.integration

TASKS = Path(__file__).parent


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def scrape(address):
    """Return the samples of a process: a function of a name and labels that gives their sum, or None."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]

    def value(name, /, **labels):
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    return value


@pytest.fixture
def queue(monkeypatch):
    name = f"metrics-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", name)
    return name


@pytest.fixture
def served(monkeypatch):
    address = free_address()
    monkeypatch.setenv("CELERY_HYBRID_TEST_METRICS", address)
    return address


@pytest.fixture(params=["prefork", "threads", "gevent", "solo"])
def pool(request):
    return request.param


@pytest.fixture
def start(worker_class, tmp_path, queue, served):
    workers = []

    def started(pool, *arguments):
        log = tmp_path / f"{len(workers)}.log"
        workers.append(worker_class(pool, log, "-c", "2", "-Q", queue, *arguments, app="metrics_tasks"))
        workers[-1].wait_ready()
        return workers[-1]

    yield started
    for worker in workers:
        worker.process.send_signal(signal.SIGCONT)
        worker.stop()


def test_each_end_of_a_task_is_counted_once_in_every_pool(make_app, pool, start, served, queue, tmp_path):
    app = make_app()
    start(pool)
    good = [app.send_task("hybrid.add", (1, 1), queue=queue) for _ in range(5)]
    bad = app.send_task("hybrid.fail", ("no",), queue=queue)
    again = app.send_task("hybrid.retried", (str(tmp_path / "once"),), queue=queue)
    gone = app.send_task("hybrid.add", (1, 1), queue=queue, expires=-1)
    for each in (*good, again):
        each.get(timeout=30)
    for each in (bad, gone):
        with pytest.raises(Exception, match=r"no|expired"):
            each.get(timeout=30)

    def all_seen():
        # The result is there a moment before the main process gets to know.
        return scrape(served)("celery_task_succeeded_total") == 6

    wait_until(all_seen, 10)
    value = scrape(served)
    add = {"name": "hybrid.add", "queue_name": queue, "hostname": "test"}
    # Celery does not receive what has expired.
    assert value("celery_task_received_total", **add) == 5
    assert value("celery_task_started_total", **add) == value("celery_task_succeeded_total", **add) == 5
    assert value("celery_task_revoked_total", **add) == 1
    assert value("celery_task_runtime_count", **add) == 5
    assert value("celery_task_queue_wait_time_count", **add) == 5
    assert value("celery_task_failed_total", name="hybrid.fail", exception="ValueError") == 1
    assert value("celery_task_retried_total", name="hybrid.retried") == 1
    assert value("celery_task_succeeded_total", name="hybrid.retried") == 1
    assert value("celery_dead_letters_total", reason="failed") == 1
    # STARTED as well as the final state.
    assert value("celery_result_store_seconds_count") >= 8
    assert value("celery_worker_concurrency") == (1 if pool == "solo" else 2)
    assert value("celery_worker_pool_processes") == (2 if pool == "prefork" else 0)
    assert value("celery_active_consumer_count", queue_name=queue) == 1
    assert value("celery_worker_info", pool={"threads": "thread"}.get(pool, pool)) == 1


def test_lost_process_is_counted_and_its_successor_goes_on_counting(make_app, start, served, queue, tmp_path):
    app = make_app()
    worker = start("prefork", "--max-tasks-per-child", "1")
    [app.send_task("hybrid.add", (n, n), queue=queue).get(timeout=30) for n in range(4)]
    stored = scrape(served)("celery_result_store_seconds_count")
    assert stored >= 8, "the results of children that have ended count as well"
    app.send_task("hybrid.wait_for_file", (str(tmp_path / "never"),), queue=queue)
    wait_until(lambda: scrape(served)("celery_worker_tasks_active") == 1, 10)
    for child in subprocess.run(
        ["pgrep", "-P", str(worker.process.pid)], capture_output=True, text=True, check=True
    ).stdout.split():
        os.kill(int(child), signal.SIGKILL)
    wait_until(lambda: scrape(served)("celery_task_retried_total", name="hybrid.wait_for_file") == 1, 20)


def test_scrape_takes_no_time_while_the_loop_hangs_and_shows_that_it_does(make_app, start, served):
    worker = start("prefork")
    assert scrape(served)("celery_worker_loop_age_seconds") < 3
    make_app().control.broadcast("hang", arguments={"seconds": 6}, destination=[worker.name])
    wait_until(lambda: scrape(served)("celery_worker_loop_age_seconds") > 3, 15)
    began = time.monotonic()
    scrape(served)
    assert time.monotonic() - began < 1
    wait_until(lambda: scrape(served)("celery_worker_loop_age_seconds") < 3, 15)


def test_worker_whose_port_is_taken_runs_tasks_and_says_why_there_are_no_metrics(make_app, start, served, queue):
    host, port = served.split(":")
    with socket.create_server((host, int(port))):
        worker = start("solo")
        assert make_app().send_task("hybrid.add", (2, 2), queue=queue).get(timeout=30) == 4
    assert f"No metrics are served: cannot listen on 127.0.0.1 port {port}" in worker.log.read_text()


def test_children_that_outlive_their_worker_do_not_keep_its_port(start, served):
    worker = start("prefork", "--max-tasks-per-child", "1")
    with socket.socket() as taken:
        assert taken.connect_ex(("127.0.0.1", int(served.split(":")[1]))) == 0
    owners = subprocess.run(["ss", "-Hltnp", f"sport = :{served.split(':')[1]}"], capture_output=True, text=True)
    assert f"pid={worker.process.pid}," in owners.stdout
    assert owners.stdout.count("pid=") == 1


def test_beat_counts_what_it_has_sent(tmp_path, served, queue):
    command = [sys.executable, "-m", "celery", "-A", "metrics_tasks", "beat", "--pidfile=", "-s", str(tmp_path / "s")]
    environment = {**os.environ, "CELERY_HYBRID_TEST_RESULTS": needed("CELERY_HYBRID_TEST_WORKER")}
    beat = subprocess.Popen(command, cwd=TASKS, env=environment, stderr=subprocess.DEVNULL)
    try:

        def sent():
            try:
                return (scrape(served)("celery_beat_sent_total", name="add") or 0) >= 2
            except OSError:
                return False

        wait_until(sent, 30)
        value = scrape(served)
        assert value("celery_beat_up") == 1
        assert value("celery_beat_entries") >= 1
        assert value("celery_beat_tick_age_seconds") < 5
        assert time.time() - value("celery_beat_last_sent_timestamp_seconds", name="add") < 10
    finally:
        beat.terminate()
        beat.wait(20)

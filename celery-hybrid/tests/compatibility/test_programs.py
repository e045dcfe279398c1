"""Programs of others, in the pinned versions, beside workers of this package; README.md has the table."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, broker_url, results_url, worker_class):
    """A worker of the application, and the application."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_HYBRID_TEST_QUEUE", f"programs-{uuid.uuid4().hex[:8]}")
        patch.setenv("COMPATIBILITY_EVENTS", str(folder / "events"))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("C_FORCE_ROOT", "1")
        patch.syspath_prepend(str(HERE))
        worker = worker_class("prefork", folder / "worker.log", "-c", "2", app="program_tasks")
        try:
            worker.wait_ready()
            import program_tasks

            yield worker, program_tasks
        finally:
            worker.stop()


def until(condition, explain=str, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, explain()
        time.sleep(0.2)
    return found


def test_sentry_has_one_event_of_a_failed_task(deployed, tmp_path_factory):
    worker, tasks = deployed
    events = worker.log.parent / "events"
    failed = tasks.fail.delay()
    with pytest.raises(ValueError, match="on purpose"):
        failed.get(timeout=20)
    until(lambda: "Dead-lettered the" in worker.log.read_text(), worker.log.read_text)
    until(events.exists, worker.log.read_text)
    assert [json.loads(line)["logger"] for line in events.read_text().splitlines()] == [None]


def test_celery_singleton_and_celery_once_and_celery_progress_work(deployed):
    from celery_progress.backend import Progress

    _, tasks = deployed
    assert tasks.single.delay(3).get(timeout=20) == 3
    assert tasks.once.delay(4).get(timeout=20) == 4
    result = tasks.progress.delay()
    assert result.get(timeout=20) == "done"
    assert Progress(result).get_info()["success"] is True


def test_flower_with_the_url_only_shows_workers(deployed, broker_url):
    worker, _ = deployed
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flower = subprocess.Popen(
        [sys.executable, "-m", "celery", f"--broker={broker_url}", "flower", f"--port={port}", "--address=127.0.0.1"],
        env={"PATH": "/usr/bin:/bin", "FLOWER_UNAUTHENTICATED_API": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def workers():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/workers?refresh=1", timeout=10) as answer:
                return worker.name in json.load(answer)
        except OSError:
            return False

    try:
        until(workers)
    finally:
        flower.terminate()
        flower.wait(20)


def test_redbeat_finds_the_broker_in_the_settings(deployed):
    _, tasks = deployed
    from redbeat.schedulers import RedBeatConfig

    assert RedBeatConfig(tasks.app).redis_url == tasks.app.conf["broker_url"]


def test_opentelemetry_has_a_span_of_a_task_that_is_sent(deployed):
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    _, tasks = deployed
    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        assert tasks.add.delay(1, 2).get(timeout=20) == 3
        assert (tasks.add.s(1, 2) | tasks.add.s(3)).delay().get(timeout=20) == 6
        assert [span.name for span in spans.get_finished_spans()] == ["apply_async/programs.add"] * 2
    finally:
        instrumentor.uninstrument()

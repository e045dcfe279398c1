"""A worker whose serializer is another's neither ends nor stops the workers that accept JSON only."""

from __future__ import annotations

import time
import uuid

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def sociable(worker_class, tmp_path, monkeypatch):
    """Start workers that ask their neighbours what they know, as those of a deployment do."""
    begun = []

    class Sociable(worker_class):
        alone = ()

    def start(app):
        monkeypatch.setenv("C_FORCE_ROOT", "1")
        monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", f"neighbours-{uuid.uuid4().hex[:8]}")
        worker = Sociable("prefork", tmp_path / f"{len(begun)}.log", "-c", "1", app=app)
        begun.append(worker)
        worker.wait_ready()
        return worker

    yield start
    for worker in begun:
        worker.stop()


def test_workers_start_and_go_on_beside_one_that_speaks_pickle(sociable):
    sociable("neighbour_tasks")
    worker = sociable("dead_letter_tasks")
    assert "Ignoring the answer of another worker" in worker.log.read_text()
    # Asks them, in pickle.
    sociable("neighbour_tasks")
    end = time.monotonic() + 20
    while "Ignoring a remote control command" not in worker.log.read_text():
        assert time.monotonic() < end, worker.log.read_text()
        time.sleep(0.1)
    assert worker.process.poll() is None
    assert "Dead-lettered the" not in worker.log.read_text()

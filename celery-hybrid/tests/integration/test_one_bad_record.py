"""One bad record, or a full disk of the worker, holds up nobody; every task gets a final state."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from environment import needed
from proxy import Proxy

from celery_hybrid.delivery.outbox import Outbox
from celery_hybrid.errors import RecordTooLargeError
from celery_hybrid.rabbitmq.records import RESULT, Record

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(240)]

#: More than RabbitMQ takes in one message.
TOO_LARGE = "x" * 20_000_000


@pytest.fixture
def proxy():
    """A way to RabbitMQ for the workers of a test."""
    parts = urlsplit(needed("CELERY_HYBRID_TEST_WORKER"))
    proxy = Proxy(parts.hostname, parts.port or 5672)
    yield proxy
    proxy.stop()


@pytest.fixture
def cut_off(proxy, other_worker, monkeypatch):
    """Start a worker that is reached by the proxy alone, with an outbox in a folder."""

    def start(folder, **options):
        parts = urlsplit(needed("CELERY_HYBRID_TEST_WORKER"))
        login = parts.netloc.rpartition("@")[0]
        url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}"))
        monkeypatch.setenv("CELERY_HYBRID_TEST_WORKER", url)
        options = {"outbox": str(folder / "outbox.sqlite3"), **options}
        monkeypatch.setenv("CELERY_HYBRID_TEST_OPTIONS", json.dumps(options))
        return other_worker("prefork", "-c", "2")

    return start


def celery(*arguments):
    command = [sys.executable, "-m", "celery", "-A", "hybrid_tasks", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state_of(worker):
    (state,) = json.loads(celery("inspect", "result_store", "-j", "-t", "5", "-d", worker.name)).values()
    return state


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def ran(path, count):
    return path.exists() and len(path.read_text().split()) == count


class TestFullDisk:
    @pytest.fixture
    def disk(self, tmp_path):
        folder = tmp_path / "disk"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], check=False).returncode:
            pytest.skip("no file system can be mounted here")
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)

    @pytest.mark.parametrize("ballast", [True, False])
    def test_what_waits_is_delivered_once_and_tasks_go_on(
        self, disk, proxy, cut_off, make_app, tmp_path, shell, ballast
    ):
        worker = cut_off(disk)
        app = make_app()
        note, path = app.tasks["hybrid.note"], tmp_path / "ran"
        proxy.cut()
        sent = [note.delay(str(number), str(path)) for number in range(40)]
        wait_until(lambda: ran(path, 40) and state_of(worker)["outbox"]["count"] == 80)
        if not ballast:
            (disk / "outbox.sqlite3.ballast").unlink()
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        before = published(shell)
        proxy.heal()
        assert [result.get(timeout=60) for result in sent] == [None] * 40
        wait_until(lambda: state_of(worker)["outbox"]["count"] == 0)
        # Beside a full disk, while RabbitMQ is there.
        later = [note.delay(str(number), str(path)) for number in range(40, 60)]
        assert [result.get(timeout=30) for result in later] == [None] * 20
        time.sleep(5)
        assert published(shell) - before <= 2 * 60 + 30  # and what is published to see what is there
        assert state_of(worker)["circuit"] == "closed"
        assert sorted(path.read_text().split(), key=int) == [str(number) for number in range(60)]
        (disk / "filler").unlink()
        wait_until(lambda: not Outbox(disk / "outbox.sqlite3", 10**6, 2**30).holds())


def published(shell):
    """Return how many messages are in the streams."""
    shell("sleep 6")  # RabbitMQ counts every five seconds
    rows = shell.ctl(f"list_queues -p {shell.vhost} --no-table-headers name messages").splitlines()
    return sum(int(row.split("\t")[1]) for row in rows if row.startswith("celery.results."))


def test_a_record_that_is_too_large_for_rabbitmq_waits_for_nobody(proxy, cut_off, make_app, tmp_path):
    worker = cut_off(tmp_path)
    app = make_app()
    proxy.cut()
    large = app.tasks["hybrid.add"].delay(TOO_LARGE, "")
    small = [app.tasks["hybrid.add"].delay(1, number) for number in range(5)]
    wait_until(lambda: state_of(worker)["outbox"]["count"] == 12)
    proxy.heal()
    assert [result.get(timeout=60) for result in small] == [1, 2, 3, 4, 5]
    with pytest.raises(RecordTooLargeError, match="ended as SUCCESS, which could not be stored"):
        large.get(timeout=60)
    wait_until(lambda: state_of(worker)["outbox"]["count"] == 0)
    state = state_of(worker)
    assert (state["circuit"], state["outbox"]["refused"]) == ("closed", 2)
    said = celery("tasks", "refused")
    assert f"result SUCCESS {large.id}" in said
    assert "larger than configured max size" in said
    path = tmp_path / "refused.jsonl"
    assert "2 records moved to" in celery("tasks", "refused", "--to", str(path), "--execute")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [large.id] * 2
    assert "0 records set aside." in celery("tasks", "refused")


def test_a_slow_line_takes_its_time_for_a_large_record(proxy, cut_off, make_app, tmp_path):
    worker = cut_off(tmp_path, confirm_timeout=1)
    app = make_app()
    proxy.cut()
    large = app.tasks["hybrid.add"].delay("x" * 7_000_000, "")
    small = app.tasks["hybrid.add"].delay(1, 1)
    wait_until(lambda: state_of(worker)["outbox"]["count"] == 4)
    proxy.rate = 1_500_000
    proxy.heal()
    assert small.get(timeout=100) == 2
    assert len(large.get(timeout=60)) == 7_000_000
    assert state_of(worker)["outbox"]["refused"] == 0


def test_many_records_are_delivered_in_order(proxy, cut_off, make_app, tmp_path):
    """Faster than one confirm after the other."""
    path = tmp_path / "outbox.sqlite3"
    outbox = Outbox(path, 10**6, 2**30)
    task_id = str(uuid.uuid4())
    for number in range(300):
        meta = json.dumps({"status": "PROGRESS", "result": number, "task_id": task_id, "children": []}).encode()
        outbox.add(Record(task_id, RESULT, status="PROGRESS", body=meta, content_type="application/json"), None)
    outbox.close()
    cut_off(tmp_path)
    app = make_app()
    wait_until(lambda: not outbox.waiting())
    assert app.AsyncResult(task_id).info == 299


@pytest.mark.parametrize("size", [20_000_000, 9_000_000])
class TestTooLarge:
    """Arguments and exceptions of tasks, each alone and together more than RabbitMQ takes."""

    def test_arguments(self, worker, app, size):
        sent = app.tasks["hybrid.note"].delay("x" * size, os.devnull)
        assert sent.get(timeout=60) is None
        assert app.AsyncResult(sent.id).state == "SUCCESS"

    def test_exception(self, worker, app, size):
        sent = app.tasks["hybrid.fail"].delay("x" * size)
        error = RecordTooLargeError if size > 16_000_000 else (ValueError, RecordTooLargeError)
        with pytest.raises(error):
            sent.get(timeout=60)
        assert app.AsyncResult(sent.id).state == "FAILURE"

    def test_result(self, worker, app, size):
        sent = app.tasks["hybrid.add"].delay("x" * size, "x" * size)
        with pytest.raises(RecordTooLargeError):
            sent.get(timeout=60)
        assert app.AsyncResult(sent.id).state == "FAILURE"
        assert app.tasks["hybrid.add"].delay(1, 1).get(timeout=20) == 2


class TestIds:
    @pytest.mark.parametrize("length", [200, 201, 255, 256, 3000])
    @pytest.mark.parametrize("name", ["add", "fail"])
    def test_of_any_length(self, worker, make_app, length, name):
        app = make_app()
        task_id = f"{uuid.uuid4()}-".ljust(length, "i")
        sent = app.tasks[f"hybrid.{name}"].apply_async((1, 1) if name == "add" else ("no",), task_id=task_id)
        if name == "add":
            assert sent.get(timeout=30) == 2
        else:
            with pytest.raises(ValueError, match="no"):
                sent.get(timeout=30)
        other = make_app()
        assert other.AsyncResult(task_id).state == ("SUCCESS" if name == "add" else "FAILURE")
        other.AsyncResult(task_id).forget()
        assert make_app().AsyncResult(task_id).state == "PENDING"
        assert app.tasks["hybrid.add"].delay(1, 1).get(timeout=20) == 2

    @pytest.mark.parametrize("name", ["add", "fail"])
    def test_a_uuid_object(self, worker, make_app, name):
        app = make_app()
        task_id = uuid.uuid4()
        sent = app.tasks[f"hybrid.{name}"].apply_async((1, 1) if name == "add" else ("no",), task_id=task_id)
        if name == "add":
            assert sent.get(timeout=30) == 2
        else:
            with pytest.raises(ValueError, match="no"):
                sent.get(timeout=30)
        assert make_app().AsyncResult(str(task_id)).state == make_app().AsyncResult(task_id).state == sent.state
        assert app.tasks["hybrid.add"].delay(1, 1).get(timeout=20) == 2

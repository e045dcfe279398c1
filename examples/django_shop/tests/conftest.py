# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The application without servers, and as processes with them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def needed(name: str) -> str:
    """Return a setting of the environment, or end the test."""
    value = os.environ.get(name)
    if not value:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not set, and CI=true")
        pytest.skip(f"{name} is not set")
    return value


class Processes:
    """Starts processes of the application, and ends them with the tests."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, name: str, *command: str, **environment: str) -> Path:
        """Start ``python -m command…``; return the file of its output."""
        log = self._directory / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**self._environment, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._running.append((process, log))
        return log

    def run(self, *command: str) -> str:
        """Run ``python -m command…`` to its end; return its output."""
        done = subprocess.run(
            [sys.executable, "-m", *command], env=self._environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, log: Path, text: str, seconds: float = 40) -> None:
        """Wait until a process has said something."""
        end = time.monotonic() + seconds
        while text not in log.read_text():
            for process, file in self._running:
                assert process.poll() is None, file.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End all of them."""
        for process, _ in self._running:
            process.terminate()
        for process, _ in self._running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    directory = tmp_path_factory.mktemp("processes")
    processes = Processes(
        directory,
        {
            **os.environ,
            "CELERY_BROKER_URL": needed("CELERY_HYBRID_TEST_BROKER"),
            "CELERY_RESULT_BACKEND": needed("CELERY_HYBRID_TEST_RESULTS"),
            "CELERY_RESULT_PARTITIONS": os.environ.get("CELERY_HYBRID_TEST_PARTITIONS", "16"),
            "PYTHONPATH": str(ROOT / "src"),
            # The worker's outbox and gunicorn's socket.
            "HOME": str(directory),
            "DJANGO_DATABASE": str(directory / "shop.sqlite3"),
            "DJANGO_SECRET_KEY": "for these tests",
        },
    )
    yield processes
    processes.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Web:
    """The web server as its clients see it."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"

    def __call__(self, path: str, body: Any = None) -> Any:
        """Send a request, with JSON if there is a body; return the JSON of the answer."""
        request = urllib.request.Request(  # noqa: S310
            self._root + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def from_another(self, path: str, process: int) -> Any:
        """Ask until another process than that one answers."""
        end = time.monotonic() + 30
        while True:
            answer = self(path)
            if answer["process"] != process:
                return answer
            assert time.monotonic() < end, f"process {process} answers everything"
            time.sleep(0.01)


@pytest.fixture(scope="session")
def web(processes: Processes) -> Web:
    """A worker, and gunicorn with two processes."""
    processes.run("django_shop.manage", "migrate", "--verbosity", "0")
    worker = processes.start(
        "worker",
        *("celery", "--app", "django_shop", "worker", "-c", "2", "-l", "INFO"),
        CELERY_RESULT_BACKEND=needed("CELERY_HYBRID_TEST_WORKER"),
    )
    port = free_port()
    gunicorn = processes.start(
        "gunicorn",
        *("gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "django_shop.wsgi"),
    )
    processes.wait_for(worker, " ready.")
    processes.wait_for(gunicorn, "Booting worker")
    return Web(port)


@pytest.fixture
def runserver(web: Web, processes: Processes, tmp_path: Path) -> tuple[Web, Path, Path]:
    """Django's own server with its autoreload: as its clients see it, its output, and a module that it watches."""
    watched = tmp_path / "watched.py"
    watched.write_text("")
    port = free_port()
    log = processes.start(
        "runserver",
        *("django_shop.manage", "runserver", f"127.0.0.1:{port}"),
        PYTHONPATH=f"{ROOT / 'src'}:{tmp_path}",
        PYTHONUNBUFFERED="1",
        # Imported by every process when it starts.
        DJANGO_SETTINGS_MODULE="watched_settings",
    )
    (tmp_path / "watched_settings.py").write_text("import watched\nfrom django_shop.settings import *\n")
    server = Web(port)
    end = time.monotonic() + 30
    while True:
        try:
            server("/results/00000000-0000-0000-0000-000000000000")
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        else:
            return server, log, watched

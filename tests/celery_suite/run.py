#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run Celery's own integration tests with its Redis backend and with ours, and compare.

The tests are those of Celery's source distribution. Both runs use the same broker, which the roles have set up; ours
logs in to RabbitMQ as a worker does. The Redis backend has a Redis without a password: tests keep their notes there,
and some of them look at its channels.

    python -m tests.celery_suite.run [--backend redis|hybrid|both] [--at ADDRESS] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INVENTORY = ROOT / "tests" / "inventory" / "celery_suite.yml"
ADDRESS = "10.213.21.13"
SECRETS = ROOT / ".cache" / "hosts" / "secrets"
CACHE = ROOT / ".cache" / "celery_suite"
BIN = ROOT / ".venv" / "bin"
SOURCE = ROOT / "celery-hybrid" / "src"
CELERY = "5.7.0"
# The port of the Redis without a password.
NOTES = 6380
# Of t/integration; it is about Azure, and needs its package to be collected.
IGNORED = "t/integration/test_backend.py"
# What a test says that came to the limit of suite_outcomes.py, not to a shorter one of its own: it is not tried again.
HUNG = r"Timeout \(>120"

_POOL = "counts the sockets of redis-py's pool"
_CHANNELS = "looks at Redis' pub/sub channels"
_KEYS = "reads the keys of the Redis backend"
#: What is about the inside of the Redis backend, and why; everything else must hold for ours as well.
REDIS_ONLY = {
    "test_canvas.py::test_chord::test_chord_on_error": _KEYS,
    "test_canvas.py::test_chord::test_simple_chord_with_a_delay_in_group_save": "delays a step of key/value backends",
    "test_backend_leak_in_fixture_teardown.py::test_fixture_teardown_releases_backend_connections": _POOL,
    "test_redis_backend.py::test_decode_responses_disables_compression": "uses an option of redis-py in the URL",
    "test_redis_backend.py::test_failure_expires": _KEYS,
    "test_redis_backend.py::test_pubsub_subscribe_churn_while_draining": _CHANNELS,
    "test_redis_backend.py::test_pubsub_reentrant_cancel_from_finalizer": _CHANNELS,
    "test_redis_backend.py::test_chord_expires": _KEYS,
    "test_redis_backend.py::test_chord_part_return_records_each_header_task_once": _KEYS,
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_forget_cancels_subscription": _CHANNELS,
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_get_cancels_subscription": _CHANNELS,
}


@dataclass(frozen=True)
class Subject:
    """A backend under test.

    Attributes:
        name: what it is called on the command line.
        title: what it is called in the report.
        url: makes ``result_backend``, given the address of the host.
        arguments: of pytest, besides those of every run.
    """

    name: str
    title: str
    url: Callable[[str], str]
    arguments: tuple[str, ...] = ()

    @property
    def outcomes(self) -> Path:
        """Where the latest run has written what became of each test."""
        return CACHE / f"{self.name}.jsonl"


SUBJECTS = (
    Subject("redis", "redis://", lambda address: f"redis://{address}:{NOTES}/0"),
    Subject(
        "hybrid",
        "amqp://",
        lambda address: f"redis_hybrid:AMQPBackend+amqp://worker:{secret('rabbitmq_worker')}@{address}:5672/celery",
        ("-p", "redis_hybrid", *(f"--deselect=t/integration/{name}" for name in REDIS_ONLY)),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a test: ``passed``, ``failed``, ``skipped``, ``xfailed`` or ``error``, and why."""

    kind: str
    why: str


def secret(name: str) -> str:
    """Return a secret of the test hosts, fit for a URL."""
    return quote((SECRETS / name).read_text().strip(), safe="")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> int:
    """Run a command and return its exit status."""
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=settings, check=False).returncode


def must(*command: str | Path) -> None:
    """Run a command that has to succeed.

    Raises:
        SystemExit: it did not.
    """
    if run(*command):
        raise SystemExit(f"Failed: {' '.join(str(part) for part in command[:4])}")


def prepare() -> Path:
    """Make an environment and unpack Celery's tests, unless that was done; return the folder of both."""
    requirements = HERE / "requirements.txt"
    folder = CACHE / hashlib.sha256(requirements.read_bytes() + CELERY.encode()).hexdigest()[:12]
    if (folder / "complete").exists():
        return folder
    print(f"-- installing Celery {CELERY} and its tests in {folder.relative_to(ROOT)}", flush=True)
    pip = (folder / "venv" / "bin" / "pip", "--disable-pip-version-check", "-q")
    must(sys.executable, "-m", "venv", "--clear", folder / "venv")
    must(*pip, "install", "-r", requirements)
    must(*pip, "download", "--no-deps", "--no-binary", "celery", "-d", folder, f"celery=={CELERY}")
    with tarfile.open(folder / f"celery-{CELERY}.tar.gz") as archive:
        # Not the rest: the Celery that is tested is the one that is installed.
        wanted = [m for m in archive if m.name.split("/")[1:2] in (["t"], ["pyproject.toml"])]
        archive.extractall(folder, wanted, filter="data")
    (folder / "complete").touch()
    return folder


def servers() -> None:
    """Set up the host with Redis and RabbitMQ."""
    must(BIN / "python", "tests/hosts/testhosts.py", "up", "-i", INVENTORY)
    must(BIN / "ansible-playbook", "-i", INVENTORY, "celeryops.hybrid.site")


def empty_redis(address: str, binaries: Path) -> None:
    """Start the Redis without a password if it does not run, and empty it and the broker."""
    script = (
        f"redis-cli -h {address} -p {NOTES} ping >/dev/null 2>&1 || redis-server --port {NOTES} --bind {address}"
        " --protected-mode no --save '' --daemonize yes >/dev/null"
    )
    must(sys.executable, "-m", "tests.package.run", "--on", address, script)
    code = "import os, redis; [redis.Redis.from_url(url).flushall() for url in os.environ['URLS'].split()]"
    urls = (f"redis://{address}:{NOTES}", f"redis://admin:{secret('redis_admin')}@{address}:6379")
    if run(binaries / "python", "-c", code, URLS=" ".join(urls)):
        raise SystemExit("The broker cannot be emptied.")


def run_suite(subject: Subject, folder: Path, address: str, arguments: list[str]) -> None:
    """Run the tests with a backend; what became of them is in its ``outcomes`` afterwards.

    Raises:
        SystemExit: pytest did not come to its end.
    """
    print(f"\n-- Celery {CELERY}'s integration tests with {subject.title}", flush=True)
    binaries = folder / "venv" / "bin"
    empty_redis(address, binaries)
    subject.outcomes.unlink(missing_ok=True)
    status = run(
        *(binaries / "python", "-m", "pytest", "-p", "celery.contrib.pytest", "-p", "suite_outcomes"),
        *("-p", "no:cacheprovider", "-v", "--tb=short", "-rN", "--rerun-except", HUNG),
        *(f"--ignore={IGNORED}", "-o", "testpaths=t/integration", *subject.arguments, *arguments),
        cwd=folder / f"celery-{CELERY}",
        CELERY_SUITE_OUTCOMES=str(subject.outcomes),
        # Tests start "celery" as a command.
        PATH=f"{binaries}:{os.environ['PATH']}",
        PYTHONPATH=f"{HERE / 'plugins'}:{SOURCE}",
        REDIS_HOST=address,
        REDIS_PORT=str(NOTES),
        TEST_BACKEND=subject.url(address),
        TEST_BROKER=f"redis://celery:{secret('redis')}@{address}:6379/0",
    )
    if status not in {0, 1}:
        raise SystemExit(f"pytest did not run all tests: it ended with status {status}.")


def outcomes_of(subject: Subject) -> dict[str, Outcome]:
    """Return what became of each test in the latest run with a backend."""
    outcomes: dict[str, Outcome] = {}
    if not subject.outcomes.exists():
        return outcomes
    order = ("passed", "xfailed", "skipped", "failed", "error")
    for line in subject.outcomes.read_text().splitlines():
        report = json.loads(line)
        kind = report["outcome"]
        if kind == "rerun":
            # What counts is the last attempt.
            outcomes.pop(report["test"], None)
            continue
        if kind == "failed" and report["when"] != "call":
            kind = "error"
        known = outcomes.get(report["test"])
        if known is None or order.index(kind) > order.index(known.kind):
            outcomes[report["test"]] = Outcome(kind, report["why"])
    return outcomes


def report() -> int:
    """Print the latest outcomes side by side; return how many tests pass with Redis and not with ours."""
    redis, hybrid = (outcomes_of(subject) for subject in SUBJECTS)
    kinds = ("passed", "failed", "error", "skipped", "xfailed")
    print("\n" + " " * 12 + "".join(f"{kind:>9}" for kind in kinds))
    for subject, outcomes in zip(SUBJECTS, (redis, hybrid), strict=True):
        count = Counter(outcome.kind for outcome in outcomes.values())
        print(f"{subject.title:12}" + "".join(f"{count[kind]:9}" for kind in kinds))
    both = redis.keys() & hybrid.keys()
    bad = {"failed", "error"}
    worse = [test for test in both if redis[test].kind == "passed" != hybrid[test].kind]
    _list("Pass with redis://, not with amqp://", worse, hybrid)
    # What Celery expects to fail with Redis, it need not expect with others.
    alike = [t for t in both if redis[t].kind in bad | {"xfailed"} and hybrid[t].kind in bad]
    _list("Fail with both", alike, hybrid)
    _list("Fail with redis:// only", [t for t in both if redis[t].kind in bad and hybrid[t].kind not in bad], redis)
    print(f"\nAbout the inside of the Redis backend, so not run with amqp:// ({len(REDIS_ONLY)}):")
    for name, reason in REDIS_ONLY.items():
        print(f"  {name}: {reason}")
    return len(worse)


def _list(title: str, tests: list[str], outcomes: dict[str, Outcome]) -> None:
    print(f"\n{title} ({len(tests)}):")
    for test in sorted(tests):
        outcome = outcomes[test]
        print(f"  {test.removeprefix('t/integration/')}: {outcome.kind}: {outcome.why[:160]}")


def main() -> int:
    """Run the tests on a fresh host and remove it, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--backend", choices=[*(s.name for s in SUBJECTS), "both"], default="both")
    parser.add_argument("--at", metavar="ADDRESS", help="a test host that is set up already, and is kept")
    parser.add_argument("--report", action="store_true", help="only compare the latest runs")
    options, arguments = parser.parse_known_args()
    if options.report:
        return min(report(), 1)
    folder = prepare()
    try:
        if options.at is None:
            servers()
        for subject in SUBJECTS:
            if options.backend in (subject.name, "both"):
                run_suite(subject, folder, options.at or ADDRESS, arguments)
    finally:
        if options.at is None:
            run(BIN / "python", "tests/hosts/testhosts.py", "down", "-i", INVENTORY)
    return min(report(), 1)


if __name__ == "__main__":
    sys.exit(main())

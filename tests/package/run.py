#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests of celery-hybrid against servers that the roles have set up.

Each host of ``tests/inventory/package.yml`` carries a Redis and a RabbitMQ of one Debian release. The
tests get the rights of a client, their workers those of a worker, never those of an administrator.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tests.support.lab import BIN, INVENTORIES, PACKAGE, ROOT, STATE, secret

INVENTORY = INVENTORIES / "package.yml"
LOGS = ROOT / ".cache" / "package"
# (host, its address, the environments of tox that run there): RabbitMQ 3.10 is on Debian 12, 4.0 on Debian 13. Tests
# stop their servers, so what runs at the same time has a host of its own.
MATRIX = (
    ("debian12", "10.213.20.12", ("celery57", "examples")),
    ("debian12-outages", "10.213.20.22", ("celery57-outages",)),
    ("debian13", "10.213.20.13", ("celery57",)),
    ("debian13-outages", "10.213.20.23", ("celery57-outages",)),
    ("debian13-older", "10.213.20.14", ("celery55", "celery56")),
)

COMPATIBILITY = (("debian12", "10.213.20.12", ("compatibility",)),)


def run(*command: str | Path, log: IO[str] | None = None, **environment: str) -> int:
    """Run a command in the checkout, its output into a log if there is one; return its exit status."""
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment}
    output: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT} if log else {}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=False, **output).returncode


def run_tests(matrix: tuple[tuple[str, str, tuple[str, ...]], ...]) -> int:
    """Set up the servers and run a matrix; return the number of runs that failed."""
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    # Once, because building writes into the sources.
    if run(BIN / "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", LOGS, PACKAGE):
        return 1
    shutil.rmtree(PACKAGE / "build", ignore_errors=True)
    if run(BIN / "python", "tests/hosts/testhosts.py", "up", "-i", INVENTORY):
        return 1
    # The hosts do not depend on each other here, so all at once; a role's output matters when it fails.
    site = (BIN / "ansible-playbook", "-i", INVENTORY, "celeryops.hybrid.site")
    at_once = ("-e", f"redis_serial={len(MATRIX)}", "-e", f"rabbitmq_serial={len(MATRIX)}")
    if run(*site, *at_once, ANSIBLE_DISPLAY_OK_HOSTS="false"):
        return 1
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(run_on, matrix))


def run_on(row: tuple[str, str, tuple[str, ...]]) -> int:
    """Run the environments of one host, one after the other; return the number of those that failed."""
    host, address, environments = row
    (wheel,) = LOGS.glob("*.whl")
    failed = 0
    for name in environments:
        began = time.monotonic()
        path = LOGS / f"{host}-{name}.log"
        print(f"-- celery-hybrid: {name} against {host}; output in {path.relative_to(ROOT)}", flush=True)
        tox = (BIN / "tox", "run", "-q", "-c", PACKAGE, "--workdir", PACKAGE / ".tox" / host, "--installpkg", wheel)
        with path.open("w") as log:
            status = run(
                *(*tox, "-e", name),
                log=log,
                CELERY_HYBRID_TEST_BROKER=f"redis://celery:{secret('redis')}@{address}:6379/0",
                CELERY_HYBRID_TEST_BROKER_ADMIN=f"redis://admin:{secret('redis_admin')}@{address}:6379/0",
                CELERY_HYBRID_TEST_RESULTS=f"amqp://client:{secret('rabbitmq_client')}@{address}:5672/celery",
                CELERY_HYBRID_TEST_WORKER=f"amqp://worker:{secret('rabbitmq_worker')}@{address}:5672/celery",
                CELERY_HYBRID_TEST_SHELL=f"env PYTHONPATH={ROOT} {sys.executable} -m tests.package.run --on {address}",
            )
        text = path.read_text()
        counts = "; ".join(re.findall(r"^.*(?:passed|failed).* in .*$", text, re.MULTILINE))
        good = status == 0 and counts
        failed += not good
        verdict = (
            f"{'passed' if good else 'FAILED'} after {time.monotonic() - began:.0f} s: {counts or 'no test has run'}"
        )
        # In one go, because the other host's may come at the same time.
        print(f"{'' if good else text}-- celery-hybrid: {name} against {host}: {verdict}", flush=True)
    return failed


def on(address: str, script: str) -> int:
    """Run a script as root in a shell of a host; SSH would split its words again."""
    return run("ssh", "-F", STATE / "ssh_config", address, f"sudo sh -c {shlex.quote(script)}")


def main() -> int:
    """Run the tests on fresh hosts and remove these, whatever happens."""
    if sys.argv[1:2] == ["--on"]:
        return on(*sys.argv[2:4])
    try:
        return min(run_tests(COMPATIBILITY if sys.argv[1:] == ["compatibility"] else MATRIX), 1)
    finally:
        run(BIN / "python", "tests/hosts/testhosts.py", "down", "-i", INVENTORY)


if __name__ == "__main__":
    sys.exit(main())

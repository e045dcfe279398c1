#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests of celery-hybrid against servers that the roles have set up.

Each host of ``molecule/inventory/package.yml`` carries a Redis and a RabbitMQ of one Debian release. The
tests get the rights of a client, their workers those of a worker, never those of an administrator.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "molecule" / "inventory" / "package.yml"
STATE = ROOT / ".cache" / "hosts"
PACKAGE = ROOT / "roles" / "worker" / "files" / "celery-hybrid"
BIN = ROOT / ".venv" / "bin"
# (host, its address, the environments of tox that run there): RabbitMQ 3.10 is on Debian 12, 4.0 on Debian 13.
MATRIX = (
    ("debian12", "10.213.20.12", ("celery57",)),
    ("debian13", "10.213.20.13", ("celery57", "celery55", "examples")),
)


def secret(name: str) -> str:
    """Return a secret of the test hosts, fit for a URL."""
    return quote((STATE / "secrets" / name).read_text().strip(), safe="")


def run(*command: str | Path, **environment: str) -> int:
    """Run a command in the checkout and return its exit status."""
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=False).returncode


def run_tests() -> int:
    """Set up the servers and run the matrix; return the number of runs that failed."""
    failed = 0
    if run(BIN / "python", "tests/hosts/testhosts.py", "up", "-i", INVENTORY):
        return 1
    # The hosts do not depend on each other here, so both at once; a role's output matters when it fails.
    site = (BIN / "ansible-playbook", "-i", INVENTORY, "celeryops.hybrid.site")
    if run(*site, "-e", "redis_serial=2", "-e", "rabbitmq_serial=2", ANSIBLE_DISPLAY_OK_HOSTS="false"):
        return 1
    for host, address, environments in MATRIX:
        for tox_environment in environments:
            print(f"\n-- celery-hybrid: {tox_environment} against {host}", flush=True)
            failed += (
                run(
                    BIN / "tox",
                    "run",
                    "-q",
                    "-c",
                    PACKAGE,
                    "-e",
                    tox_environment,
                    CELERY_HYBRID_TEST_BROKER=f"redis://celery:{secret('redis')}@{address}:6379/0",
                    CELERY_HYBRID_TEST_RESULTS=f"amqp://client:{secret('rabbitmq_client')}@{address}:5672/celery",
                    CELERY_HYBRID_TEST_WORKER=f"amqp://worker:{secret('rabbitmq_worker')}@{address}:5672/celery",
                    CELERY_HYBRID_TEST_SHELL=f"{sys.executable} {__file__} --on {address}",
                )
                != 0
            )
    return failed


def on(address: str, script: str) -> int:
    """Run a script as root in a shell of a host; SSH would split its words again."""
    return run("ssh", "-F", STATE / "ssh_config", address, f"sudo sh -c {shlex.quote(script)}")


def main() -> int:
    """Run the tests on fresh hosts and remove these, whatever happens."""
    if sys.argv[1:2] == ["--on"]:
        return on(*sys.argv[2:4])
    try:
        return min(run_tests(), 1)
    finally:
        run(BIN / "python", "tests/hosts/testhosts.py", "down", "-i", INVENTORY)


if __name__ == "__main__":
    sys.exit(main())

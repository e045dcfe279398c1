#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests of the modules against servers that the roles have set up.

Each host of ``tests/inventory/modules.yml`` carries a Redis and a RabbitMQ of one Debian release.

    python -m tests.modules.run [--keep] [-i INVENTORY] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.lab import BIN, PINS, ROOT, venv

ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible" / "collections"),
}


def run(*command: str | Path, **environment: str) -> int:
    """Run a command in the checkout; return its exit status."""
    settings = {**ENVIRONMENT, **environment}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=False).returncode


def run_tests(host: str, inventory: Path, stock: Path, arguments: list[str]) -> int:
    """Run the tests against one host, whose name is in that of each test; return the exit status."""
    tests: tuple[str | Path, ...] = (BIN / "pytest", "tests/modules", "-p", "no:cacheprovider", "-k", host, *arguments)
    environment = {**ENVIRONMENT, "MODULES_INVENTORY": str(inventory), "MODULES_STOCK": str(stock)}
    done = subprocess.run(tests, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    # In one go, because the other host's may come at the same time.
    print(f"-- modules against {host}\n{done.stdout}{done.stderr}", end="", flush=True)
    return done.returncode


def main() -> int:
    """Run the tests, on fresh hosts unless some are kept; remove these, whatever happens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-i", "--inventory", default=ROOT / "tests" / "inventory" / "modules.yml", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the hosts, for the next run")
    arguments, rest = parser.parse_known_args()
    inventory = arguments.inventory.resolve()
    hosts: tuple[str | Path, ...] = (BIN / "python", "tests/hosts/testhosts.py")
    # The hosts do not depend on each other here, so both at once; a role's output matters when it fails.
    site: tuple[str | Path, ...] = (BIN / "ansible-playbook", "-i", inventory, "celeryops.hybrid.site")
    # Tests wait for statistics of RabbitMQ.
    quick = (
        "-e",
        "redis_serial=2",
        "-e",
        "rabbitmq_serial=2",
        "-e",
        '{"rabbitmq_config": {"collect_statistics_interval": 1000}}',
    )
    try:
        if run(*hosts, "up", "-i", inventory) or run(*site, *quick, ANSIBLE_DISPLAY_OK_HOSTS="false"):
            return 1
        # The Celery of the workers, and nothing of ours; both runs share it.
        stock = venv(ROOT / ".cache" / "modules" / "stock", *PINS)
        with ThreadPoolExecutor() as pool:
            return max(pool.map(lambda host: run_tests(host, inventory, stock, rest), ("debian12", "debian13")))
    finally:
        if not arguments.keep:
            run(*hosts, "down", "-i", inventory)


if __name__ == "__main__":
    sys.exit(main())

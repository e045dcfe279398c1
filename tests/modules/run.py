#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests of the modules against servers that the roles have set up.

Each host of ``molecule/inventory/modules.yml`` carries a Redis and a RabbitMQ of one Debian release.

    tests/modules/run.py [--keep] [-i INVENTORY] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"


def run(*command: str | Path, **environment: str) -> int:
    """Run a command in the checkout; return its exit status."""
    settings = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible" / "collections"),
        **environment,
    }
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=False).returncode


def main() -> int:
    """Run the tests, on fresh hosts unless some are kept; remove these, whatever happens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-i", "--inventory", default=ROOT / "molecule" / "inventory" / "modules.yml", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the hosts, for the next run")
    arguments, rest = parser.parse_known_args()
    inventory = arguments.inventory.resolve()
    hosts: tuple[str | Path, ...] = (BIN / "python", "tests/hosts/testhosts.py")
    # The hosts do not depend on each other here, so both at once; a role's output matters when it fails.
    site: tuple[str | Path, ...] = (BIN / "ansible-playbook", "-i", inventory, "celeryops.hybrid.site")
    tests = (BIN / "pytest", "tests/modules", "-p", "no:cacheprovider", *rest)
    try:
        return (
            run(*hosts, "up", "-i", inventory)
            or run(*site, "-e", "redis_serial=2", "-e", "rabbitmq_serial=2", ANSIBLE_DISPLAY_OK_HOSTS="false")
            or run(*tests, MODULES_INVENTORY=str(inventory))
        )
    finally:
        if not arguments.keep:
            run(*hosts, "down", "-i", inventory)


if __name__ == "__main__":
    sys.exit(main())

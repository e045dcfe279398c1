#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the transport beside kombu's own, in one run against one Redis.

One host of ``molecule/inventory/bench.yml`` carries Redis, set up by the roles; sender and workers run here. What
counts is the ratio; no figure makes this fail.

    tests/bench/transport.py [--quick] [--image debian12] [--write docs/transport-benchmark.md]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from run import CACHE, HERE, HOSTS, Servers, facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hosts"))
from lab import INVENTORIES, PACKAGE, PINS, host, markdown, say, venv


def measure(servers: Servers, *, quick: bool) -> list[list[str]]:
    """Return the rows of the table.

    Raises:
        CalledProcessError: the probe has failed.
    """
    python = venv(CACHE / "venv", *PINS, package=PACKAGE) / "bin" / "python"
    # The user's password is not for arguments.
    environment = {**os.environ, "BENCH_REDIS": servers.throw_away_redis_user().replace("/0", "/9")}
    rows: list[list[str]] = []
    command = [str(python), str(HERE / "transport_probe.py"), *(["--quick"] if quick else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            name, ours, stock, unit = json.loads(line)
            rows.append([name, f"{ours:,.2f}", f"{stock:,.2f}", unit, f"{ours / stock:.2f}"])
            say("  ".join(rows[-1]))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rows


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth, in a minute")
    parser.add_argument("--image", choices=HOSTS, default="debian13", help="release of Debian on the host")
    parser.add_argument("--on", metavar="ADDRESS", help="a test host that the roles have set up and that stays")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report there as well")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    inventory, address = HOSTS[options.image]
    with contextlib.nullcontext() if options.on else host(INVENTORIES / inventory, CACHE / "site.log"):
        servers = Servers(options.on or address)
        known = facts(servers, quick=options.quick)
        table = markdown(
            [["what", "ours", "kombu's", "unit", "ratio"], *measure(servers, quick=options.quick)],
        )
        known["load average after the run"] = f"{os.getloadavg()[0]:.1f}, other programs included"
    report = "\n".join(
        [
            "# Benchmark of the transport",
            "",
            "Written by `tests/bench/transport.py --write`, not by hand: medians of three rounds in which both sides",
            "take turns on one machine. **The ratios are what counts.** Less is better for latency, and for what an",
            "idle worker asks of Redis; commands inside scripts count as well.",
            "",
            *(f"* {name}: {value}" for name, value in known.items()),
            "",
            table,
            "",
        ]
    )
    print(report)
    if options.write:
        options.write.write_text(report)


if __name__ == "__main__":
    main()

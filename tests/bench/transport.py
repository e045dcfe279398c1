#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the transport beside kombu's own, in one run against one Redis.

One host of ``tests/inventory/bench.yml`` carries Redis, set up by the roles; sender and workers run here. What
counts is the ratio; no figure makes this fail.

    python -m tests.bench.transport [--quick] [--image debian12] [--write docs/transport-benchmark.md]
"""

from __future__ import annotations

import json
import os
import subprocess

from tests.bench.run import CACHE, Servers, facts, load, main
from tests.support.lab import PACKAGE, PINS, ROOT, markdown, say, venv


def rows_of(servers: Servers, *, quick: bool) -> list[list[str]]:
    """Return the rows of the table.

    Raises:
        CalledProcessError: the probe has failed.
    """
    python = venv(CACHE / "venv", *PINS, package=PACKAGE) / "bin" / "python"
    # The user's password is not for arguments.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "BENCH_REDIS": servers.throw_away_redis_user().replace("/0", "/9"),
    }
    rows: list[list[str]] = []
    command = [str(python), "-m", "tests.bench.transport_probe", *(["--quick"] if quick else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            name, ours, stock, unit = json.loads(line)
            rows.append([name, f"{ours:,.2f}", f"{stock:,.2f}", unit, f"{ours / stock:.2f}"])
            say("  ".join(rows[-1]))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rows


def measure(servers: Servers, *, quick: bool) -> str:
    """Return the report, as Markdown."""
    known = facts(servers, quick=quick)
    table = markdown([["what", "ours", "kombu's", "unit", "ratio"], *rows_of(servers, quick=quick)])
    known["load average after the run"] = load()
    return "\n".join(
        [
            "# Benchmark of the transport",
            "",
            "Written by `make bench-transport`, not by hand: medians of three rounds in which both sides",
            "take turns on one machine. **The ratios are what counts.** Less is better for latency, and for what an",
            "idle worker asks of Redis; commands inside scripts count as well.",
            "",
            *(f"* {name}: {value}" for name, value in known.items()),
            "",
            table,
            "",
        ]
    )


if __name__ == "__main__":
    main((__doc__ or "").partition("\n")[0], "a tenth, in a minute", measure)

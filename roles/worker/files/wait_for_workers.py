# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until every worker instance of this host answers, or say at once that one does not live.

The role sends this program, with a call of :func:`main` after it, to the Python of the workers' virtual
environment, as their user and with their environment. The last line of its output is
``{"problems": [{"unit": ..., "sentence": ...}]}``.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# A unit that was started this long ago, and not since, is not a unit that dies at its start.
STEADY_SECONDS = 5


def state_of(unit: str) -> dict[str, str]:
    """Return what systemd knows of a unit."""
    names = "ActiveState,SubState,NRestarts,Result,ExecMainStatus,ActiveEnterTimestampMonotonic"
    done = subprocess.run(
        ["/usr/bin/systemctl", "show", f"--property={names}", unit], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def dead(now: dict[str, str], before: dict[str, str]) -> str:
    """Return how a unit died, or nothing while it lives."""
    restarts = int(now["NRestarts"]) - int(before["NRestarts"])
    if now["ActiveState"] == "failed" or now["SubState"] == "auto-restart" or restarts > 0:
        return (
            f"started and died (result {now['Result']}, status {now['ExecMainStatus']}): correct what its journal says "
            "(its entry in worker_instances, worker_settings, worker_sandbox_disabled, the application), and run again"
        )
    if now["ActiveState"] == "inactive":
        return "is not running: it was stopped meanwhile; run this again"
    return ""


def steady(state: dict[str, str]) -> bool:
    """Return whether a unit has been active for a while."""
    since = int(state["ActiveEnterTimestampMonotonic"] or 0) / 1e6
    return state["ActiveState"] == "active" and time.monotonic() - since > STEADY_SECONDS


def problem(unit: str, what: str) -> dict[str, str]:
    """Return the entry for a unit that does not do."""
    return {"unit": unit, "sentence": f"{unit} {what}."}


def wait(
    request: dict[str, Any],
    ping: Callable[[list[str]], set[str]],
    states: Callable[[str], dict[str, str]] = state_of,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[dict[str, str]]:
    """Return the units that do not live or do not answer, each with a sentence.

    Args:
        request: ``instances``, ``deaf`` (those that cannot answer while they work), ``beat``, ``node``
            (what follows the name in a node's name), ``seconds``.
        ping: asks nodes, and returns those that answered.
        states: asks systemd for the state of a unit.
        clock: seconds from a monotonic clock.
        pause: sleeps.
    """
    silent = {f"celery-worker@{name}": f"{name}{request['node']}" for name in request["instances"]}
    units = [*silent, *(["celery-beat"] if request["beat"] else [])]
    deaf = {f"celery-worker@{name}" for name in request["deaf"]}
    before = {unit: states(unit) for unit in units}
    deadline = clock() + request["seconds"]
    while True:
        now = {unit: states(unit) for unit in units}
        fallen = {unit: how for unit in units if (how := dead(now[unit], before[unit]))}
        if fallen:
            return [problem(unit, how) for unit, how in fallen.items()]
        if silent:
            answered = ping(list(silent.values()))
            silent = {
                unit: node
                for unit, node in silent.items()
                if node not in answered and not (unit in deaf and steady(now[unit]))
            }
        # Beat answers nobody. One that was just started has a moment to die.
        if not silent and all(steady(now[unit]) or unit != "celery-beat" for unit in units):
            return []
        if clock() > deadline:
            break
        pause(0.3)
    return [
        problem(
            unit,
            f"runs, but the node {node} has not answered within {request['seconds']} s (worker_start_timeout): "
            "it does not reach Redis, or hangs while it starts",
        )
        for unit, node in silent.items()
    ]


def pinger(name: str) -> Callable[[list[str]], set[str]]:
    """Return a function that pings nodes through the broker, with the application's own settings."""
    from celery.app.utils import find_app

    app = find_app(name)

    def ping(nodes: list[str]) -> set[str]:
        try:
            replies = app.control.ping(destination=nodes, timeout=2.0)
        except Exception as exc:
            print(f"ping: {type(exc).__name__}: {exc}", file=sys.stderr)  # noqa: T201
            return set()
        return {node for reply in replies for node in reply}

    return ping


def main(encoded: str) -> None:
    """Wait as described by base64 of JSON, and print what came out."""
    request = json.loads(base64.b64decode(encoded))
    print(json.dumps({"problems": wait(request, pinger(request["app"]))}))  # noqa: T201

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A steady load, and what became of every task of it. Runs on a worker host, with the workers' Python and settings.

load.py send FILE SECONDS    short, long and delayed tasks, noted in FILE, until FILE.stop is there; SECONDS at the most
load.py read FILE            a line of JSON: each task with its kind, when it was due and done, and how often it ran
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

from kombu.exceptions import OperationalError

from ledger import app, books, work

PER_SECOND = 8
# Seconds that a task takes, and those that it waits for. Every so many-th task is of this kind.
KINDS = {"long": (40, 12.0, 0), "later": (10, 0.05, 6), "short": (1, 0.05, 0)}
# For the last tasks to end, and for the reading of all results.
PATIENCE = 90.0


def send(notes: Path, seconds: float) -> None:
    """Send until told to stop."""
    begun, number = time.monotonic(), 0
    with notes.open("w") as lines:
        while time.monotonic() - begun < seconds and not Path(f"{notes}.stop").exists():
            time.sleep(max(0.0, begun + number / PER_SECOND - time.monotonic()))
            kind = next(kind for kind, (every, _, _) in KINDS.items() if number % every == 0)
            _, takes, waits = KINDS[kind]
            task_id = str(uuid.uuid4())
            while True:
                try:
                    work.apply_async((takes,), task_id=task_id, countdown=waits or None)
                    break
                except OperationalError:
                    time.sleep(0.5)
            lines.write(json.dumps([task_id, kind, time.time() + waits + takes]) + "\n")
            lines.flush()
            number += 1


def read(notes: Path) -> None:
    """Print what became of all tasks."""
    runs = Counter(task_id.decode() for task_id in books().lrange("ledger:runs", 0, -1))
    deadline = time.monotonic() + PATIENCE
    tasks = []
    for line in notes.read_text().splitlines():
        task_id, kind, due = json.loads(line)
        result = app.AsyncResult(task_id)
        while not result.ready() and time.monotonic() < deadline:
            time.sleep(0.5)
            result = app.AsyncResult(task_id)
        done = result.date_done.timestamp() if result.ready() else None
        version, node = result.result if result.state == "SUCCESS" else ("", "")
        tasks.append(
            {
                "kind": kind,
                "due": due,
                "done": done,
                "state": result.state,
                "version": version,
                "node": node,
                "runs": runs[task_id],
            }
        )
    ticks = [float(tick) for tick in books().lrange("ledger:ticks", 0, -1)]
    print(json.dumps({"tasks": tasks, "ticks": ticks}))  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        read(Path(sys.argv[2]))

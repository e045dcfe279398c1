"""Count what waits in the outboxes of a host: results and dead letters that RabbitMQ has not taken.

The ``worker`` role pipes this program, with a call of :func:`main` after it, to a Python, as the workers' user. It only
reads, and needs neither the application nor a server. The last line of its output is
``{"waiting": {PATH: records}, "problems": [...]}``.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def count(path: Path) -> int:
    """Return how many records wait in an outbox, or were set aside there; 0 when the file is another's.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        # Table names cannot be bound as values; these are constants.
        return sum(
            database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("records", "refused")
            if table in tables
        )


def look(folder: Path) -> dict[str, Any]:
    """Return the outboxes of a folder in which something waits, and those that cannot be read."""
    waiting, problems = {}, []
    for path in sorted(folder.glob("*.sqlite3")):
        try:
            found = count(path)
        except sqlite3.Error as exc:
            problems.append(f"{path} cannot be read: {exc}")
            continue
        if found:
            waiting[str(path)] = found
    return {"waiting": waiting, "problems": problems}


def main(encoded: str) -> None:
    """Look into the folder that base64 of JSON names, and print what is there."""
    print(json.dumps(look(Path(json.loads(base64.b64decode(encoded))["folder"]))))  # noqa: T201

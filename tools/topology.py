#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the tables of docs/topology.md, from the file that says what must exist in RabbitMQ.

``--check`` writes nothing and ends with 1 when they are out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "celery-hybrid" / "src" / "celery_hybrid" / "rabbitmq" / "topology.json"
PAGE = ROOT / "docs" / "topology.md"
BEGIN, END = "<!-- topology -->", "<!-- /topology -->"

# Kind of objects, its title, and the columns of its table: the title and the key of each.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "exchanges": ("Exchanges", {"name": "name", "type": "type"}),
    "queues": ("Queues", {"name": "name", "type": "type", "arguments": "arguments"}),
    "bindings": ("Bindings", {"from": "source", "to": "destination", "routing key": "routing_key"}),
    "policies": ("Policies", {"name": "name", "pattern": "pattern", "definition": "definition"}),
    "operator_policies": ("Operator policies", {"name": "name", "pattern": "pattern", "definition": "definition"}),
    "users": ("Users", {"name": "name", "tags": "tags", "state": "state"}),
    "permissions": ("Permissions", {"user": "user", "configure": "configure", "write": "write", "read": "read"}),
    "topic_permissions": ("Topic permissions", {"user": "user", "exchange": "exchange", "state": "state"}),
    "vhost_limits": ("Limits of the vhost", {"name": "name", "value": "value"}),
    "global_parameters": ("Global parameters", {"name": "name", "value": "value"}),
}


def code(value: Any) -> str:
    """Return a value as it can stand in a cell of a Markdown table."""
    if isinstance(value, dict):
        return ", ".join(f"`{name}: {each}`" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{value}`".replace("|", "\\|") if value != "" else ""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Return the lines of a Markdown table."""
    titles = list(columns)
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def tables(declared: dict[str, Any]) -> Iterator[str]:
    """Return the lines between the markers."""
    for kind, (title, columns) in TABLES.items():
        yield from ("", f"## {title}", "")
        yield from table(
            [*columns, "why"],
            [
                [*(code(each.get(key, "")) for key in columns.values()), each.get("why", "")]
                for each in declared["objects"][kind]
            ],
        )
    yield from ("", "## Made by processes", "")
    rows = [[each["kind"], code(each["name"]), each["why"]] for each in declared["made_by_processes"]]
    yield from table(["kind", "name", "why"], rows)
    yield from ("", "## Left from earlier versions", "")
    yield from table(
        ["kind", "name", "why"], [[each["kind"], code(each["name"]), each["why"]] for each in declared["former"]]
    )
    yield from ("", "## Values", "", "`${partition}` runs from 0 to `${partitions}` - 1.", "")
    yield from table(
        ["value", "variable of the role", "default"],
        [
            [
                code(f"${{{name}}}"),
                code(value["variable"]),
                "" if value["default"] is None else code(value["default"]),
            ]
            for name, value in declared["values"].items()
        ],
    )
    yield ""


def page() -> str:
    """Return the page with its tables written again."""
    declared = json.loads(SOURCE.read_text())
    left_out = set(declared["objects"]) - set(TABLES) - {"vhosts"}
    if left_out:
        raise SystemExit(f"docs/topology.md: no table for {', '.join(sorted(left_out))}: add it to tools/topology.py")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chr(10).join(tables(declared))}\n{END}{after}"


def main() -> int:
    """Write or check the page; return the exit status."""
    text = page()
    if text == PAGE.read_text():
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/topology.md is out of date. Run 'make docs'.", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of variables into each role's README.md, from meta/argument_specs.yml.

``--check`` writes nothing and ends with 1 when a table is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"
BEGIN, END = "<!-- variables -->", "<!-- /variables -->"


def cell(text: str) -> str:
    """Return a text that can stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def default_of(name: str, spec: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return the default as the reader would write it; a computed one is called so."""
    if spec.get("required"):
        return "**required**"
    value = spec.get("default", defaults.get(name))
    if isinstance(value, str) and "lookup('ansible.builtin.env'" in value:
        return "from the environment: `" + value.split("'")[3] + "`"
    text = json.dumps(value, ensure_ascii=False)
    if "{{" in text or len(text) > 60:
        return "computed" if "{{" in text else "see `defaults/main.yml`"
    return f"`{text}`"


def type_of(spec: dict[str, Any]) -> str:
    """Return the type, with that of the elements."""
    kind = spec.get("type", "str")
    return f"{kind} of {spec['elements']}" if "elements" in spec else str(kind)


def rows(options: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the rows of a table, an option each, nested options behind their parent."""
    lines = []
    for name, spec in options.items():
        description = spec.get("description", "")
        text = " ".join(description) if isinstance(description, list) else str(description)
        if "choices" in spec:
            text += f" One of: {', '.join(f'`{choice}`' for choice in spec['choices'])}."
        default = (
            "" if prefix and "default" not in spec and not spec.get("required") else default_of(name, spec, defaults)
        )
        lines.append(f"| `{prefix}{name}` | {type_of(spec)} | {cell(default)} | {cell(text)} |")
        lines += rows(spec.get("options", {}), {}, f"{prefix}{name}.")
    return lines


def readme(role: Path) -> str:
    """Return the role's README with a new table."""
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text()) or {}
    table = ["| variable | type | default | meaning |", "|---|---|---|---|", *rows(options, defaults)]
    before, _, rest = (role / "README.md").read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chr(10).join(table)}\n{END}{after}"


def main() -> int:
    """Write or check every role's README; return the exit status."""
    stale = []
    for role in sorted(path.parents[1] for path in ROLES.glob("*/meta/argument_specs.yml")):
        text = readme(role)
        if text != (role / "README.md").read_text():
            stale.append(role.name)
            if "--check" not in sys.argv[1:]:
                (role / "README.md").write_text(text)
    if stale and "--check" in sys.argv[1:]:
        print(f"The table of variables is out of date: {', '.join(stale)}. Run 'make docs'.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was changed and is not in use before a restart."""

from __future__ import annotations

import typing as t
from pathlib import Path


class Pending:
    """Changed paths that are not in use yet: a run may end between a change and the restart that it needs.

    Args:
        path: of the file that keeps them, or nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._names: list[str] = []
        if self._path is not None and self._path.exists():
            self._names = self._path.read_text().splitlines()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> t.Iterator[str]:
        return iter(self._names)

    def add(self, name: str) -> None:
        """Keep a path, before it changes."""
        if self._path is None or name in self._names:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(f"{name}\n")
        self._names.append(name)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are not declared, in places where their mere existence changes what a service does."""

from __future__ import annotations

import datetime
import fnmatch
import shutil
import typing as t
from pathlib import Path


def undeclared(folders: t.Iterable[str], absent: t.Iterable[str], allowed: t.Sequence[str]) -> list[Path]:
    """Return what is in the folders and not allowed, and what should be absent and is not.

    Args:
        folders: whose every entry must be allowed; one that is missing holds nothing.
        absent: single paths. A symbolic link counts, wherever it points.
        allowed: whole paths, or names of entries of the folders, as shell patterns.
    """
    found = [Path(path) for path in absent]
    for folder in map(Path, folders):
        if folder.is_dir():
            found += sorted(folder.iterdir())
    return [path for path in dict.fromkeys(found) if _exists(path) and not _allowed(path, allowed) and not _mask(path)]


def moved_before(
    names: t.Iterable[str], folders: t.Iterable[str], absent: t.Iterable[str], allowed: t.Sequence[str]
) -> list[Path]:
    """Return which of some paths are gone from places where :func:`undeclared` would have found them."""
    places = {Path(path) for path in absent}
    rooms = {Path(folder) for folder in folders}
    return [
        path
        for path in map(Path, names)
        if (path in places or path.parent in rooms) and not _exists(path) and not _allowed(path, allowed)
    ]


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _mask(path: Path) -> bool:
    """Return whether it is what 'systemctl mask' leaves, which 'systemctl unmask' takes away."""
    return path.parent == Path("/etc/systemd/system") and path.is_symlink() and str(path.readlink()) == "/dev/null"


def _allowed(path: Path, patterns: t.Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(str(path) if "/" in pattern else path.name, pattern) for pattern in patterns)


def difference(path: Path) -> dict[str, t.Any]:
    """Return a stray file as a difference, with the time of its last change."""
    status = path.lstat()
    since = datetime.datetime.fromtimestamp(status.st_mtime, datetime.timezone.utc)  # noqa: UP017
    actual = f"a link to {path.readlink()}" if path.is_symlink() else "a folder" if path.is_dir() else "a file"
    actual = "masked" if actual == "a link to /dev/null" else actual
    return _difference(path, actual, f"{path} is not declared", since.isoformat(timespec="seconds"))


def still_in_use(path: Path) -> dict[str, t.Any]:
    """Return a stray file that was moved, as a difference: the service has not been restarted since."""
    actual = "moved aside, and still in use: a run ended before the restart"
    return _difference(path, actual, f"{path} was {actual}", None)


def _difference(path: Path, actual: str, sentence: str, since: str | None) -> dict[str, t.Any]:
    return {
        "layer": "file",
        "kind": "",
        "name": str(path),
        "action": "delete",
        "actual": actual,
        "declared": None,
        "since": since,
        "sentence": sentence,
    }


def backup_path(path: Path, backup: Path, now: datetime.datetime | None = None) -> Path:
    """Make a folder of this moment in *backup*, which only root can enter, and return where a path is kept in it."""
    now = now or datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
    target = backup / now.strftime("%Y%m%dT%H%M%S.%fZ") / path.relative_to("/")
    backup.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def move_aside(path: Path, backup: Path, now: datetime.datetime) -> Path:
    """Move a path below a folder of this moment in *backup*, and return where it is now.

    Raises:
        OSError: it cannot be moved.
    """
    target = backup_path(path, backup, now)
    # Links stay links.
    shutil.move(str(path), str(target))
    return target

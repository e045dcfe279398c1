# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a virtual environment held when it was built, compared with what it holds.

The RECORD files of the distributions are not enough for that: installing another version replaces them as well,
old pips install without one, and none has the files of ``venv`` itself. So all of it is written down when it is
complete: owner, mode and SHA-256 of each file, owner and mode of each folder, the target of each link.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import hashlib
import json
import os
import re
import shutil
import stat
import typing as t
from pathlib import Path

from ansible_collections.celeryops.hybrid.plugins.module_utils._undeclared_files import backup_path

#: What was written down, and the mark of a complete environment; both in its folder.
MANIFEST, COMPLETE = "contents.json", "complete.json"
#: Python writes this when it likes.
BYTECODE = "__pycache__"
#: Bytes; larger files are not copied before an environment is replaced.
LARGEST_COPY = 1 << 20
DISTRIBUTION = re.compile(
    r"(?P<place>.*site-packages)/(?P<name>[^/]+?)-(?P<version>\d[^/-]*)(-[^/]*)?\.(dist|egg)-info"
)
#: More differences than these below one entry of site-packages are one finding.
FEW = 3
#: The mode in octal, owner and group as numbers, and the SHA-256 of a file, the target of a link, or nothing.
Entry = t.List[t.Any]  # noqa: UP006


@dataclasses.dataclass(frozen=True)
class Change:
    """One path that is not as it was.

    Attributes:
        path: relative to the environment.
        declared: what it was when the environment was built; ``None`` when it was not there.
        actual: what it is now; ``None`` when it is gone.
    """

    path: str
    declared: Entry | None
    actual: Entry | None

    def sides(self) -> tuple[str | None, str | None]:
        """Return what was and what is, in words; of two that are there only what differs."""
        if self.declared is None or self.actual is None:
            return _kind(self.declared), _kind(self.actual)
        if _kind(self.declared) != _kind(self.actual):
            return _kind(self.declared), _kind(self.actual)
        pairs = [
            (f"{name}={one}", f"{name}={other}")
            for name, one, other in zip(("mode", "owner", "group"), _rights(self.declared), _rights(self.actual))  # noqa: B905
            if one != other
        ]
        if self.declared[3] != self.actual[3]:
            pairs.append(("as it was installed", "other content"))
        return ", ".join(one for one, _ in pairs), ", ".join(other for _, other in pairs)


def _rights(entry: Entry) -> list[t.Any]:
    return [f"{int(entry[0], 8) & 0o7777:04o}", *entry[1:3]]


def _kind(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    mode = int(entry[0], 8)
    if stat.S_ISLNK(mode):
        return f"a link to {entry[3]}"
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or socket"


def contents(environment: Path) -> dict[str, Entry]:
    """Return what is in an environment, by its path relative to it.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, Entry] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(environment / folder) as entries:
            for entry in entries:
                if entry.name == BYTECODE or (not folder and entry.name in (MANIFEST, COMPLETE)):
                    continue
                path = f"{folder}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                kind, text = stat.S_IFMT(status.st_mode), ""
                if kind == stat.S_IFDIR:
                    folders.append(f"{path}/")
                elif kind == stat.S_IFREG:
                    text = _digest(entry.path)
                elif kind == stat.S_IFLNK:
                    text = os.readlink(entry.path)  # noqa: PTH115
                found[path] = [f"{status.st_mode:06o}", status.st_uid, status.st_gid, text]
    return found


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record(environment: Path) -> bool:
    """Write down what an environment holds; return whether that was not written down before.

    Raises:
        OSError: it cannot be read or written.
    """
    text = json.dumps(contents(environment), indent=0, sort_keys=True) + "\n"
    target = environment / MANIFEST
    if target.is_file() and target.read_text() == text:
        return False
    new = target.with_name(f".{MANIFEST}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(target)
    return True


def changes(environment: Path) -> list[Change]:
    """Return what is not as it was when the environment was built.

    Raises:
        OSError: it cannot be read.
    """
    for name in (COMPLETE, MANIFEST):
        if not (environment / name).is_file():
            return [Change(name, ["100644", 0, 0, ""], None)]
    try:
        declared = json.loads((environment / MANIFEST).read_bytes())
    except ValueError:
        return [Change(MANIFEST, ["100644", 0, 0, ""], ["100644", 0, 0, "unreadable"])]
    actual = contents(environment)
    if declared == actual:
        return []
    return [
        Change(path, declared.get(path), actual.get(path))
        for path in sorted({**declared, **actual})
        if declared.get(path) != actual.get(path)
    ]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The environment that is to be in use.

    Attributes:
        environment: its path.
        complete: whether it is there; otherwise that is where it is to be built.
        damaged: those that would have been it, and what has changed in each.
    """

    environment: Path
    complete: bool
    damaged: dict[Path, list[Change]]


def choose(wanted: Path, link: Path | None) -> Choice:
    """Return the environment of a name that is as it was built, or a free place for it.

    One that was changed is never built again in its place, because what runs may still run in it: the next is *wanted*
    with ``-2`` after its name, and so on.

    Args:
        wanted: path without such a number.
        link: symbolic link to the one in use. It is the first choice.

    Raises:
        OSError: one cannot be read.
    """
    in_use = os.path.realpath(link) if link is not None and link.is_symlink() else ""
    there = [path for path in _places(wanted) if not _is_free(path, in_use)]
    there.sort(key=lambda path: os.path.realpath(path) != in_use)
    damaged: dict[Path, list[Change]] = {}
    for path in there:
        found = changes(path)
        if not found:
            return Choice(path, True, {})
        damaged[path] = found
    numbers = (wanted, *(wanted.with_name(f"{wanted.name}-{number}") for number in range(2, len(there) + 2)))
    return Choice(next(path for path in numbers if path not in damaged), False, damaged)


def _places(wanted: Path) -> list[Path]:
    """Return the environments of a name, the first one first."""
    numbered = {}
    if wanted.parent.is_dir():
        for path in wanted.parent.iterdir():
            match = re.fullmatch(re.escape(wanted.name) + r"(?:-([1-9]\d*))?", path.name)
            if match:
                numbered[int(match[1] or 1)] = path
    return [numbered[number] for number in sorted(numbered)]


def _is_free(path: Path, in_use: str) -> bool:
    """Return whether it is what an interrupted build has left: never complete, and not in use."""
    return os.path.realpath(path) != in_use and not any((path / name).exists() for name in (COMPLETE, MANIFEST))


# --- for people ------------------------------------------------------------------------------------


def differences(environment: Path, found: t.Iterable[Change]) -> list[dict[str, t.Any]]:
    """Return changes as the drift playbook reports them: versions of packages first, many files of one as one."""
    found = list(found)
    declared, actual = (_distributions(found, side) for side in ("declared", "actual"))
    versions = sorted(name for name in {**declared, **actual} if declared.get(name) != actual.get(name))
    told = [
        _difference(environment, "package", f"package {name} in {environment}", declared.get(name), actual.get(name))
        for name in versions
    ]
    groups: dict[str, list[Change]] = collections.defaultdict(list)
    for change in found:
        match = DISTRIBUTION.match(change.path)
        if match is None or _name(match["name"]) not in versions:
            groups[_group(change.path)].append(change)
    for group, members in groups.items():
        if len(members) > FEW:
            actual_text = f"{len(members)} files differ, such as {members[0].path[len(group) :].lstrip('/') or group}"
            told.append(
                _difference(environment, "file", str(environment / group), "as it was installed", actual_text, members)
            )
        else:
            told += [
                _difference(environment, "file", str(environment / one.path), *one.sides(), [one]) for one in members
            ]
    return told


def _distributions(found: list[Change], side: str) -> dict[str, str]:
    """Return name and version of the distributions of which something has changed, as they were or as they are."""
    matches = [DISTRIBUTION.fullmatch(change.path) for change in found if getattr(change, side) is not None]
    return {_name(match["name"]): match["version"] for match in matches if match}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _group(path: str) -> str:
    """Return the entry of site-packages that a path belongs to, or the path's first folder."""
    match = re.match(r".*?site-packages/[^/]+", path)
    return match[0] if match else path.partition("/")[0]


def _difference(
    environment: Path,
    layer: str,
    name: str,
    declared: str | None,
    actual: str | None,
    members: t.Sequence[Change] = (),
) -> dict[str, t.Any]:
    return {
        "layer": layer,
        "kind": "",
        "name": name,
        "action": "create" if actual is None else "delete" if declared is None else "update",
        "declared": declared,
        "actual": actual,
        "since": _since(environment, members),
        "sentence": f"{name}: {actual or 'absent'}, {declared or 'absent'} when the environment was built",
    }


def _since(environment: Path, members: t.Sequence[Change]) -> str | None:
    """Return the time of the last change of files that are there."""
    times = []
    for change in members:
        try:
            times.append((environment / change.path).lstat().st_mtime)
        except OSError:
            continue
    if not times:
        return None
    since = datetime.datetime.fromtimestamp(max(times), datetime.timezone.utc)  # noqa: UP017
    return since.isoformat(timespec="seconds")


def keep(environment: Path, found: t.Iterable[Change], backup: Path) -> dict[str, str]:
    """Copy what was changed or added in an environment that is replaced; return where each file is now.

    Left out are files above :data:`LARGEST_COPY`.

    Raises:
        OSError: one cannot be copied.
    """
    kept: dict[str, str] = {}
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
    for change in found:
        path = environment / change.path
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_COPY:
            continue
        if change.declared is not None and change.actual is not None and change.declared[3] == change.actual[3]:
            continue
        target = backup_path(path, backup, now)
        shutil.copy2(path, target)
        kept[str(path)] = str(target)
    return kept

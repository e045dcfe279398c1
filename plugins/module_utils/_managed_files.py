# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders, small files and links, compared with what is declared and brought to it."""

from __future__ import annotations

import shutil
import stat
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.celeryops.hybrid.plugins.module_utils._pending import Pending
from ansible_collections.celeryops.hybrid.plugins.module_utils._undeclared_files import backup_path

Diff = dict[str, t.Any]

#: Stands for what a file with secrets held.
HIDDEN = "(secret)\n"


def kind_of(path: Path) -> str:
    """Return ``file``, ``directory``, ``link``, ``absent``, or what else stands there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "absent"
    for name, is_kind in (("link", stat.S_ISLNK), ("directory", stat.S_ISDIR), ("file", stat.S_ISREG)):
        if is_kind(mode):
            return name
    return "device or socket"


def bring(module: t.Any, entry: t.Mapping[str, t.Any], pending: Pending) -> list[Diff]:
    """Compare one entry of the module *files*, and bring it to its declaration when it differs and may be written.

    Raises:
        OSError: it cannot be read or written.
        ValueError: something of another type stands in the way, or what is to be validated is not valid.
    """
    only_look, module.check_mode = module.check_mode, True
    try:
        differs = _bring(module, entry)
    finally:
        module.check_mode = only_look
    if differs and not only_look:
        pending.add(entry["path"])
        _bring(module, entry)
    elif not differs and entry["path"] in pending:
        differs = [_in_use(entry["path"])]
    return differs


def _bring(module: t.Any, entry: t.Mapping[str, t.Any]) -> list[Diff]:
    """Bring an entry to its declaration, but for check mode; return what differed, as ``--diff`` shows it."""
    path, state = Path(entry["path"]), entry["state"]
    actual = kind_of(path)
    # A file may take the place of a link, which hides nothing.
    if actual not in ("absent", state) and (actual, state) != ("link", "file") and state != "absent":
        raise ValueError(f"a {actual} is in the way of the {state}. Look what it is, and move it away")
    if state == "absent":
        return _remove(module, path, actual)
    if state == "link":
        return _link(module, path, actual, entry["target"])
    # What is not there has no owner.
    differs = _attributes(module, path, entry) if actual == state else []
    if state == "directory":
        return differs + _directory(module, path, actual, entry)
    return differs + _content(module, path, actual, entry)


def _remove(module: t.Any, path: Path, actual: str) -> list[Diff]:
    if actual == "absent":
        return []
    if actual == "directory":
        raise ValueError("is a directory, which is not removed. Look what is in it")
    if not module.check_mode:
        path.unlink()
    return [_states(path, actual, "absent")]


def _link(module: t.Any, path: Path, actual: str, target: str) -> list[Diff]:
    before = str(path.readlink()) if actual == "link" else None
    if before == target:
        return []
    if not module.check_mode:
        # Nobody finds it missing.
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(path)
    if before is None:
        return [_states(path, "absent", "link")]
    return [{"before": {"path": str(path), "src": before}, "after": {"path": str(path), "src": target}}]


def _directory(module: t.Any, path: Path, actual: str, entry: t.Mapping[str, t.Any]) -> list[Diff]:
    if actual == "directory":
        return []
    if not module.check_mode:
        _make_parents(path)
        path.mkdir(mode=0o700)
        _attributes(module, path, entry)
    return [_states(path, "absent", "directory")]


def _make_parents(path: Path) -> None:
    """Make the folders above, for all to pass, whatever root's umask is."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)


def _content(module: t.Any, path: Path, actual: str, entry: t.Mapping[str, t.Any]) -> list[Diff]:
    secret = entry["secret"] is not None
    declared = entry["secret"] if secret else entry["content"]
    before = path.read_bytes() if actual == "file" else b""
    if actual == "file" and before == declared.encode():
        return []
    if not module.check_mode:
        if actual == "file" and not secret and module.params.get("backup"):
            _keep(path, before.decode(errors="replace"), declared, Path(module.params["backup"]))
        _write(module, path, declared.encode(), entry)
    if secret:
        # Of a secret that is missing this is known.
        before, declared = (HIDDEN.encode() if actual == "file" else b""), "(another secret)\n"
    told = {"after_header": str(path), "before": before.decode(errors="replace"), "after": declared}
    return [told if actual == "absent" else {"before_header": str(path), **told}]


def _keep(path: Path, before: str, declared: str, backup: Path) -> None:
    """Copy a file of another program before it is replaced.

    Ours begins with the lines that say who manages it.
    """
    if before.splitlines()[:2] == declared.splitlines()[:2]:
        return
    shutil.copy2(path, backup_path(path, backup))


def _write(module: t.Any, path: Path, text: bytes, entry: t.Mapping[str, t.Any]) -> None:
    """Replace a file by one that is complete, validated, and its owner's alone from the beginning."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(text)
            file.flush()
            if entry["validate"]:
                code, out, err = module.run_command(entry["validate"] % new)
                if code != 0:
                    raise ValueError(f"would not be valid, and is left as it was: {(err or out).strip()}")
            _attributes(module, new, entry)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _attributes(module: t.Any, path: Path, entry: t.Mapping[str, t.Any]) -> list[Diff]:
    """Bring owner, group and mode to their declaration."""
    diff: Diff = {"before": {"path": str(path)}, "after": {"path": str(path)}}
    arguments = module.load_file_common_arguments(
        {"path": str(path), "mode": entry["mode"], "owner": entry["owner"], "group": entry["group"]}
    )
    return [diff] if module.set_fs_attributes_if_different(arguments, False, diff) else []


def _in_use(path: str) -> Diff:
    waits = "not since it was written: a run ended before the restart"
    return {"before": {"path": path, "in use": waits}, "after": {"path": path, "in use": "yes"}}


def _states(path: Path, before: str, after: str) -> Diff:
    return {"before": {"path": str(path), "state": before}, "after": {"path": str(path), "state": after}}

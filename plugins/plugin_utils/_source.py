# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of source trees that are equal, byte for byte, when the trees are."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

# What tools leave behind in a checkout. None of it belongs to the source.
LEFT_OUT = (".*", "__pycache__", "*.pyc", "*.egg-info")
# Deeper down these may be packages of the application.
LEFT_OUT_AT_THE_TOP = ("build", "dist", "node_modules", "venv")
# Wheels cannot hold a time before 1980; any fixed one serves.
TIME = 1577836800


class SourceError(Exception):
    """The tree cannot be packed; the message says why."""


def _paths(root: Path, exclude: Collection[str]) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not _left_out(name))
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in (*LEFT_OUT_AT_THE_TOP, *exclude)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*files, *links]):
            if not _left_out(name):
                yield Path(folder) / name


def _left_out(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def pack(root: Path, name: str, exclude: Collection[str] = ()) -> bytes:
    """Return a gzipped tar archive of a source tree, all of it in one folder called *name*.

    Folders at the top whose name is in *exclude* are left out.

    Raises:
        SourceError: a symbolic link leads out of the tree, or something is neither file nor link.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _paths(root, exclude):
            relative = path.relative_to(root)
            entry = tarfile.TarInfo(f"{name}/{relative.as_posix()}")
            entry.mtime = TIME
            if path.is_symlink():
                if not path.resolve().is_relative_to(root.resolve()):
                    raise SourceError(f"{path} is a symbolic link that leads out of {root}")
                entry.type, entry.linkname = tarfile.SYMTYPE, os.fspath(path.readlink())
                archive.addfile(entry)
            elif path.is_file():
                content = path.read_bytes()
                entry.size = len(content)
                entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                archive.addfile(entry, io.BytesIO(content))
            else:
                raise SourceError(f"{path} is neither a file nor a symbolic link")
    # Level 6: the difference to 9 is in the seconds, not in the bytes.
    return gzip.compress(buffer.getvalue(), compresslevel=6, mtime=0)


def digest(content: bytes) -> str:
    """Return the SHA-256 of an archive."""
    return hashlib.sha256(content).hexdigest()

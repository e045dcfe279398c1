# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on a host: a file on the control node names the process that works on it.

Each user of the control node has a file of its own, which only it can write. A file counts only as long as the process
that it names lives and belongs to the owner of the file, so that nothing is left to be cleaned up after a crash, and
nobody can speak for another user.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import getpass
import json
import os
import re
import stat
import tempfile
import time
import typing as t
from pathlib import Path

Holder = dict[str, t.Any]

# Another run of the same user holds the guard for milliseconds.
PATIENCE = 10.0
_LONGEST = 4096


def lock_file(address: str) -> Path:
    """Return the file of a host, in the folder that all users of the control node share."""
    folder = Path("/run/lock")
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    return folder / f"celeryops-hybrid-{re.sub('[^A-Za-z0-9.:_-]', '_', address)}.lock"


def own_file(path: Path) -> Path:
    """Return the file of this user."""
    return path.with_name(f"{path.name}.{os.getuid()}")


def take(path: Path, process: int) -> Holder | None:
    """Take the lock for a process; return who has it instead, if anyone has.

    Raises:
        OSError: the files of this user cannot be used; the text says why.
    """
    own = own_file(path)
    with _guard(own):
        holder = _holder(own)
        if holder and holder["process"] != process:
            return holder
        if other := _other(path, own):
            return other
        _write(own, process)
        # Two users may have written at the same time; then both stand back.
        other = _other(path, own)
        if other:
            own.unlink()
        return other


@contextlib.contextmanager
def _guard(own: Path) -> t.Iterator[None]:
    """Keep other runs of this user out, by a file that only this user can open: reading one is enough to lock it."""
    guard = own.with_name(f"{own.name}.guard")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(guard, flags, 0o600), "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise OSError(errno.EPERM, "it is not a file of this user; remove it as root", str(guard))
        deadline = time.monotonic() + PATIENCE
        while not _locked(file.fileno()):
            if time.monotonic() >= deadline:
                why = f"another process of this user holds it ('fuser -v {guard}' names it)"
                raise OSError(errno.EBUSY, why, str(guard))
            time.sleep(0.05)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _other(path: Path, own: Path) -> Holder | None:
    """Return a run of another user."""
    for file in sorted(path.parent.glob(f"{path.name}.*")):
        if file != own and not file.name.endswith(".guard") and (holder := _holder(file)):
            return holder
    return None


def _holder(file: Path) -> Holder | None:
    """Return the living process that a file names, if it belongs to the file's owner."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            holder = json.loads(opened.read(_LONGEST) or b"{}")
            process = int(holder["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A number is used again after a while, and after a boot soon.
    if _owner(process) != status.st_uid or _began(process) != holder.get("began"):
        return None
    return {"process": process, "user": str(holder.get("user")), "since": str(holder.get("since"))}


def _write(own: Path, process: int) -> None:
    """Write the file of this user, readable for all others and never seen half."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"process": process, "began": _began(process), "user": getpass.getuser(), "since": since}
    with tempfile.NamedTemporaryFile("w", dir=own.parent, prefix=f".{own.name}.", delete=False) as file:
        json.dump(holder, file)
        os.fchmod(file.fileno(), 0o644)
    Path(file.name).replace(own)


def _owner(process: int) -> int | None:
    """Return the user of a process, or None when there is no such process."""
    try:
        return Path(f"/proc/{process}").stat().st_uid
    except OSError:
        return None


def _began(process: int) -> str:
    """Return when a process began, in ticks since boot; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on a host: a file on the control node names the process that works on it.

The file stays; it counts only as long as the process lives, so that nothing is left to be cleaned up after a crash.
"""

from __future__ import annotations

import datetime
import fcntl
import getpass
import json
import os
import re
import tempfile
import typing as t
from pathlib import Path

Holder = dict[str, t.Any]


def lock_file(address: str) -> Path:
    """Return the file of a host, in the folder that all users of the control node share."""
    folder = Path("/run/lock")
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    return folder / f"celeryops-hybrid-{re.sub('[^A-Za-z0-9.:_-]', '_', address)}.lock"


def take(path: Path, process: int) -> Holder | None:
    """Take the lock for a process; return who has it instead, if somebody has.

    Raises:
        OSError: the file can neither be opened nor made.
    """
    with os.fdopen(_open(path), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            holder: Holder = json.loads(file.read() or "{}")
        except ValueError:
            holder = {}
        if holder.get("process") != process and _lives(holder):
            return holder
        file.seek(0)
        file.truncate()
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"process": process, "began": _began(process), "user": getpass.getuser(), "since": since}, file)
        return None


def _open(path: Path) -> int:
    """Open or make the file. In a sticky folder the kernel refuses to open with O_CREAT what another user has made."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            except FileExistsError:
                continue
            # The next run may be another user's, whatever our umask is.
            os.fchmod(descriptor, 0o666)
            return descriptor


def _lives(holder: Holder) -> bool:
    if "process" not in holder:
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # A number is used again after a while, and after a boot soon.
    return _began(holder["process"]) == holder.get("began")


def _began(process: int) -> str:
    """Return when a process began, in ticks since boot; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""

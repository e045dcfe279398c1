"""Which process of the workers holds which socket.

Read as the workers' own user: root may not look into the processes of others where it lacks CAP_SYS_PTRACE, as in
containers.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def read(proc: Path = Path("/proc")) -> dict[str, dict[str, object]]:
    """Return, for the inode of each socket of this user's processes, the lowest process id, and its unit."""
    found: dict[str, dict[str, object]] = {}
    for folder in sorted((each for each in proc.iterdir() if each.name.isdigit()), key=lambda each: int(each.name)):
        # Files are closed and processes end meanwhile; most belong to others.
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.geteuid():
                continue
            unit = re.search(r"/([^/\n]+\.(?:service|scope))\n", (folder / "cgroup").read_text())
            held = {"pid": int(folder.name), "unit": unit.group(1) if unit else ""}
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(link.readlink())
                    # A child inherits those of its parent.
                    if target.startswith("socket:["):
                        found.setdefault(target[8:-1], held)
    return found

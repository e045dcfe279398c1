# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that a Redis would have after its next start: a second one is started from the same file, without data.

Defaults differ between versions and distributions, and no server tells its own. This one has no port and no data, and
ends a tenth of a second later.
"""

from __future__ import annotations

import contextlib
import pwd
import shutil
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import (
    RedisClient,
    RedisError,
    UnreachableError,
)

# What keeps the second server apart from the first, so that it tells nothing of these settings.
APART = {
    "port": "0",
    "tls-port": "0",
    "unixsocketperm": "700",
    "appendonly": "no",
    "save": "",
    "aclfile": "",
    "daemonize": "no",
    "supervised": "no",
    "requirepass": "",
    "cluster-enabled": "no",
    "replicaof": "no one",
}
# Files of its own, and what depends on the descriptors that a process gets.
OTHERS = ("dir", "logfile", "maxclients", "pidfile", "unixsocket")
PATIENCE = 10.0


class NoStartError(Exception):
    """A server does not start with the file; the text is what it said."""


def fresh_settings(file: str, user: str, program: str = "redis-server") -> dict[str, str]:
    """Return the settings that a server has after it was started from *file*, without those of :data:`APART`.

    Args:
        file: configuration file.
        user: who runs it: a user who may write the file could otherwise run a module as root.
        program: the server.

    Raises:
        NoStartError: it does not start with this file, or the program or the user is missing.
    """
    folder = Path(tempfile.mkdtemp(prefix="celeryops-redis-"))
    try:
        account = pwd.getpwnam(user)
        shutil.chown(folder, account.pw_uid, account.pw_gid)
        own = {**APART, "dir": str(folder), "unixsocket": f"{folder}/socket", "pidfile": f"{folder}/pid", "logfile": ""}
        words = [word for name, value in own.items() for word in (f"--{name}", *(value.split() or [""]))]
        # A server that runs beside: run_command would wait for its end.
        with subprocess.Popen(  # pylint: disable=ansible-bad-function
            [program, file, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            umask=0o077,
            text=True,
            errors="replace",
        ) as process:
            try:
                pairs = _settings_of(process, f"{folder}/socket")
            finally:
                process.kill()
    except (OSError, KeyError) as exc:
        raise NoStartError(str(exc)) from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {name: value for name, value in pairs.items() if name == "replicaof" or name not in (*APART, *OTHERS)}


def _settings_of(process: subprocess.Popen[str], address: str) -> dict[str, str]:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(UnreachableError, RedisError), RedisClient(address, 0, "default", "") as client:
            words = client.call("CONFIG", "GET", "*")
            return dict(zip(words[0::2], words[1::2], strict=True))
        time.sleep(0.02)
    process.kill()
    said: t.Any = process.stdout.read().splitlines() if process.stdout else []
    raise NoStartError(said[-1] if said else "it says nothing")

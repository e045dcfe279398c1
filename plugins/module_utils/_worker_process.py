# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program as the workers' user, with the workers' environment, as systemd runs the workers."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Longer answers are refused.
_MOST_OUTPUT = 8_000_000
# For systemd to start the program, and to end it.
_SYSTEMD_SECONDS = 15.0
_AS_SERVICE = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect")


class RunError(Exception):
    """The program could not be run, or gave no answer.

    Args:
        actual: what happened, in words.
        remedy: what to do.
        checks: what had been answered until then.
    """

    def __init__(self, actual: str, remedy: str, checks: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(actual)
        self.checks = list(checks)
        self.actual = actual
        self.remedy = remedy


def environment_of(path: str) -> dict[str, str]:
    """Return what systemd reads from an environment file (``EnvironmentFile=``, see systemd.exec(5)).

    Args:
        path: the file.

    Returns:
        Names and values, with those that every service has.

    Raises:
        RunError: systemd does not read it.
    """
    remedy = "Run the site playbook against this host: the worker role writes it."
    if not Path(path).exists():
        raise RunError(f"there is no {path}", remedy)
    if not Path(path).is_file():
        raise RunError(f"{path} is not a file", remedy)
    done = _systemd_run([f"--property=EnvironmentFile={path}", "--", "env", "-0"], b"", _SYSTEMD_SECONDS)
    if done.returncode:
        raise RunError(f"systemd does not read {path}: {_last_line(done.stderr) or 'see its journal'}", remedy)
    pairs = (pair.partition("=") for pair in done.stdout.decode("utf-8", "replace").split("\0"))
    return {name: value for name, _sign, value in pairs if name}


def run(
    *,
    python: str,
    user: str,
    environment_file: str,
    request: Mapping[str, Any],
    seconds: float,
    program: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program of celery-hybrid as another user, with secrets in its environment only.

    Args:
        python: the interpreter of the workers.
        user: the account of the workers.
        environment_file: the workers' environment, which systemd reads.
        request: given to it on standard input.
        seconds: after which it is ended, with every process that it has started.
        program: its module.
        environment: more variables. The host's users can read them while the program runs.

    Returns:
        What it printed, also when it had to be ended.

    Raises:
        RunError: no answer.
    """
    if not os.access(python, os.X_OK):
        raise RunError(
            f"there is no {python}", "Run the site playbook against this host, or correct python (worker_venv)."
        )
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise RunError(
            f"there is no user {user}", "Run the site playbook against this host, or correct user (worker_user)."
        ) from None
    arguments = [
        f"--property=User={user}",
        f"--property=EnvironmentFile={environment_file}",
        f"--property=RuntimeMaxSec={seconds:g}",
        "--property=KillSignal=SIGKILL",
        "--setenv=LANG=C.UTF-8",
        *(f"--setenv={name}={value}" for name, value in (environment or {}).items()),
        # -I: nothing of the caller's directory or environment is imported.
        *("--", python, "-I", "-m", program, "--request", "-"),
    ]
    started = time.monotonic()
    done = _systemd_run(arguments, json.dumps(request).encode(), seconds + _SYSTEMD_SECONDS)
    answer = done.stdout[:_MOST_OUTPUT].decode("utf-8", "replace")
    if done.returncode in (0, 1) and done.stdout.rstrip().rpartition(b"\n")[2].startswith(b'{"end"'):
        return answer
    if time.monotonic() - started >= seconds:
        return answer
    told = _last_line(done.stderr)
    if "No module named" in told and "celery_hybrid" in told:
        raise RunError(
            f"celery-hybrid, or its {program}, is not installed for {python}",
            "Run the site playbook against this host: the worker role installs it (worker_hybrid_requirement).",
        )
    raise RunError(
        f"{program} ended with code {done.returncode}: {told or 'without a word'}",
        f"Run it by hand on the host to see more: {python} -m {program} --help",
    )


def _systemd_run(arguments: Sequence[str], given: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    if os.geteuid() != 0:
        raise RunError("only root can become another user", "Run the module with become: true.")
    try:
        # run_command has no timeout.
        return subprocess.run(  # pylint: disable=ansible-bad-function
            [*_AS_SERVICE, *arguments], input=given, capture_output=True, timeout=seconds, check=False
        )
    except OSError as exc:
        raise RunError(f"systemd-run: {exc.strerror}", "The workers' host must be one that systemd manages.") from exc
    except subprocess.TimeoutExpired as exc:
        raise RunError(
            f"systemd did not end the program within {seconds:g} s",
            "Look at systemctl list-units 'run-*' and systemctl --failed on the host.",
        ) from exc


def _last_line(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").strip().splitlines()[-1:])

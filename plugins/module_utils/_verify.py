# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What celery_verify does on a worker host: ask the worker's own Python, and turn its answer into results."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import masked, secrets_of

VERIFIER = "celery_hybrid.verify"
_KINDS: dict[str, Any] = {
    "name": str,
    "ok": bool,
    "expected": str,
    "actual": str,
    "remedy": str,
    "milliseconds": (int, float),
}
# Longer answers are no answers.
_MOST_OUTPUT = 8_000_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# In double quotes a backslash escapes only these, as in a shell.
_ESCAPED_IN_QUOTES = '"\\`$'


class EnvironmentFileError(ValueError):
    """The environment file is not what systemd would read without a complaint."""


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


@dataclass
class Outcome:
    """The checks of one host."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    #: With the reason; that of those which somebody asked to leave out is empty.
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check passed, and there was one."""
        return bool(self.checks) and all(check["ok"] for check in self.checks)

    def add(self, name: str, ok: bool, expected: str, actual: str, remedy: str = "", milliseconds: float = 0.0) -> bool:
        """Add a check of this side."""
        self.checks.append(
            {
                "name": name,
                "ok": ok,
                "expected": expected,
                "actual": actual,
                "remedy": "" if ok else remedy,
                "milliseconds": round(milliseconds, 1),
                "blocked": False,
            }
        )
        return ok

    def summary(self) -> dict[str, int]:
        """How many checks there were, passed and failed."""
        passed = sum(check["ok"] for check in self.checks)
        return {"checks": len(self.checks), "passed": passed, "failed": len(self.checks) - passed}

    def message(self) -> str:
        """A sentence with the remedy for each failed check, one a line."""
        causes: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for check in self.checks:
            if not check["ok"] and not check["blocked"]:
                causes.setdefault((check["actual"], check["remedy"]), []).append(check)
        lines = []
        for (actual, remedy), checks in causes.items():
            names = ", ".join(check["name"] for check in checks)
            # One cause of many, such as facts that nobody gave, is told once.
            expected = f"; expected: {checks[0]['expected']}" if len(checks) == 1 else ""
            lines.append(f"{names}: {actual}{expected}. {remedy}")
        blocked = [check["name"] for check in self.checks if not check["ok"] and check["blocked"]]
        if blocked:
            lines.append(f"Not run because of these: {', '.join(blocked)}.")
        return "\n".join(lines)

    def table(self) -> str:
        """One line a check, for people."""
        width = max((len(check["name"]) for check in self.checks), default=0)
        lines = [
            f"{'ok' if check['ok'] else 'FAILED':<6}  {check['name']:<{width}}  {check['milliseconds']:>8.1f} ms"
            f"  {check['actual']}".rstrip()
            for check in self.checks
        ]
        lines += [
            f"{'-':<6}  {name:<{width}}  {'':>8}     left out{f': {why}' if why else ''}"
            for name, why in self.skipped.items()
        ]
        summary = self.summary()
        lines.append(f"{summary['passed']} of {summary['checks']} checks passed")
        return "\n".join(lines)


def verify(
    params: Mapping[str, Any], *, hide: Callable[[Iterable[str]], None], runner: Callable[..., str] | None = None
) -> Outcome:
    """Run all checks of this host.

    Args:
        params: the module's parameters.
        hide: is told the secrets, before anything that could hold one is kept.
        runner: stands in for :func:`run` in tests.

    Returns:
        The checks; what cannot be found out is a failed check.
    """
    outcome = Outcome()
    environment = _read_environment(outcome, Path(params["environment_file"]))
    if environment is None:
        return outcome
    environment.update({str(name): str(value) for name, value in (params["environment"] or {}).items()})
    secrets = secrets_of(environment)
    hide(secrets)
    started = time.monotonic()
    expected = f"{params['python']} runs {VERIFIER} as user {params['user']}"
    try:
        answer = (runner or run)(
            python=params["python"],
            user=params["user"],
            environment=environment,
            request=request_of(params),
            seconds=params["timeout"],
        )
        checks, skipped, ended = parse_answer(answer)
        if not ended:
            last = checks[-1]["name"] if checks else "none"
            raise RunError(
                f"the checks did not end within {params['timeout']:g} s and were stopped; the last answered was {last}",
                "Look at what hangs: importing the application, a server, or a result backend; or raise timeout.",
                checks,
            )
    except RunError as exc:
        took = (time.monotonic() - started) * 1000
        outcome.add("environment.python", False, expected, masked(exc.actual, secrets), exc.remedy, took)
        outcome.checks += exc.checks
        return outcome
    outcome.add("environment.python", True, expected, params["python"], "", (time.monotonic() - started) * 1000)
    outcome.checks += checks
    outcome.skipped = skipped
    return outcome


def request_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the verifier is asked."""
    names = (
        "app",
        "config_module",
        "python_path",
        "queues",
        "nodes",
        "expected",
        "broker_facts",
        "results_facts",
        "letters",
        "skip",
        "connect_timeout",
        "inspect_timeout",
        "canary_timeout",
    )
    return {name: params[name] for name in names if params[name] is not None}


def run(
    *,
    python: str,
    user: str,
    environment: Mapping[str, str],
    request: Mapping[str, Any],
    seconds: float,
    program: str = VERIFIER,
) -> str:
    """Run a program of celery-hybrid as another user, with secrets in its environment only.

    Args:
        python: the interpreter of the workers.
        user: the account of the workers.
        environment: what the workers have in their environment.
        request: given to it on standard input.
        seconds: after which it is ended.
        program: its module.

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
        account = pwd.getpwnam(user)
    except KeyError:
        raise RunError(
            f"there is no user {user}", "Run the site playbook against this host, or correct user (worker_user)."
        ) from None
    own: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(user, account.pw_gid)
        own = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    elif os.geteuid() != account.pw_uid:
        raise RunError(f"only root can become {user}", "Run the module with become: true.")
    base = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": account.pw_dir,
        "USER": user,
        "LOGNAME": user,
    }
    try:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            # -I: nothing of the caller's directory or environment is imported.
            [python, "-I", "-m", program, "--request", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**base, **environment},
            cwd="/",
            start_new_session=True,
            **own,
        )
    except OSError as exc:
        raise RunError(
            f"{python} cannot be run: {exc.strerror}", "Run the site playbook against this host: it repairs the venv."
        ) from exc
    try:
        out, err = process.communicate(json.dumps(request).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        # An application may have started children while it was imported.
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return out[:_MOST_OUTPUT].decode("utf-8", "replace")
    if process.returncode in (0, 1) and out.rstrip().rpartition(b"\n")[2].startswith(b'{"end"'):
        return out[:_MOST_OUTPUT].decode("utf-8", "replace")
    told = " ".join(err.decode("utf-8", "replace").strip().splitlines()[-1:])
    if "No module named" in told and "celery_hybrid" in told:
        raise RunError(
            f"celery-hybrid, or its {program}, is not installed for {python}",
            "Run the site playbook against this host: the worker role installs it (worker_hybrid_requirement).",
        )
    raise RunError(
        f"{program} ended with code {process.returncode}: {told or 'without a word'}",
        "Run it by hand on the host to see more: " + f"{python} -m {program} --help",
    )


def parse_answer(text: str) -> tuple[list[dict[str, Any]], dict[str, str], bool]:
    """What the verifier printed: a line of JSON for each check, then one for the end.

    Returns:
        The checks, those that were left out with the reason, and whether it came to its end.

    Raises:
        RunError: it is not of the form that this module reads.
    """
    remedy = "Make collection and celery-hybrid the same version: run the site playbook against this host."
    checks: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            if line == text.rpartition("\n")[2]:
                break  # it was ended while it wrote this line
            raise RunError(f"the verifier's answer is not JSON: {line[:120]!r}", remedy) from None
        if isinstance(data, dict) and "end" in data:
            if not checks:
                raise RunError("the verifier's answer holds no checks", remedy)
            return checks, {str(name): str(why) for name, why in (data.get("skipped") or {}).items()}, True
        check = data.get("check") if isinstance(data, dict) else None
        if not isinstance(check, dict) or not all(isinstance(check.get(key), kind) for key, kind in _KINDS.items()):
            raise RunError(f"the verifier's answer holds a malformed check: {line[:120]}", remedy)
        checks.append({**{key: check[key] for key in _KINDS}, "blocked": bool(check.get("blocked"))})
    return checks, {}, False


def parse_environment(text: str) -> dict[str, str]:
    """Read an environment file as systemd does (``EnvironmentFile=``, see systemd.exec(5)).

    Args:
        text: the file's content.

    Returns:
        Names and values; the last of several assignments wins.

    Raises:
        EnvironmentFileError: a line is no assignment, a name is none, or a quote is not closed. The message holds the
            line's number and never its text, because it may be a secret.
    """
    found: dict[str, str] = {}
    position, line = 0, 1
    while position < len(text):
        if text[position] in " \t\r\n":
            line += text[position] == "\n"
            position += 1
            continue
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        if text[position] in "#;":
            position = end
            continue
        name, equals, _ = text[position:end].partition("=")
        if not equals:
            raise EnvironmentFileError(f"line {line} is not of the form NAME=value")
        if not _NAME.match(name.rstrip()):
            raise EnvironmentFileError(f"line {line} does not begin with the name of a variable")
        value, after = _value(text, position + len(name) + 1, line)
        found[name.rstrip()] = value
        line += text.count("\n", position, after)
        position = after
    return found


def _value(text: str, position: int, line: int) -> tuple[str, int]:
    """One value, and the position after it. A value may be made of several quoted and bare parts."""
    value: list[str] = []
    blanks = 0  # at the end of a bare part; they do not belong to it
    bare = False
    while position < len(text) and text[position] != "\n":
        char = text[position]
        position += 1
        if char == "\\":
            bare, blanks = True, 0
            if position < len(text):
                # A line that ends in a backslash goes on in the next one.
                if text[position] != "\n":
                    value.append(text[position])
                position += 1
        elif char in "'\"" and not bare:
            part, position = _quoted(text, position, char, line)
            value.append(part)
        elif char in " \t\r" and not bare:
            continue
        else:
            bare = True
            value.append(char)
            blanks = blanks + 1 if char in " \t\r" else 0
    return "".join(value[: len(value) - blanks] if blanks else value), position


def _quoted(text: str, position: int, quote: str, line: int) -> tuple[str, int]:
    part: list[str] = []
    while position < len(text):
        char = text[position]
        position += 1
        if char == quote:
            return "".join(part), position
        if char == "\\" and quote == '"' and position < len(text):
            following = text[position]
            position += 1
            if following in _ESCAPED_IN_QUOTES:
                part.append(following)
            elif following != "\n":
                part += [char, following]
        else:
            part.append(char)
    raise EnvironmentFileError(f"line {line} opens a quote that is never closed")


def _read_environment(outcome: Outcome, path: Path) -> dict[str, str] | None:
    started = time.monotonic()
    expected = "an environment file that only root can read"
    remedy = "Run the site playbook against this host: the worker role writes it."
    try:
        mode = path.stat()
        environment = parse_environment(path.read_text("utf-8"))
    except EnvironmentFileError as exc:
        outcome.add("environment.file", False, expected, f"{path}: {exc}", remedy)
        return None
    except UnicodeDecodeError:
        outcome.add("environment.file", False, expected, f"{path} is not UTF-8 text", remedy)
        return None
    except FileNotFoundError:
        outcome.add("environment.file", False, expected, f"there is no {path}", remedy)
        return None
    except OSError as exc:
        outcome.add("environment.file", False, expected, f"{path}: {exc.strerror}", "Run the module with become: true.")
        return None
    took = (time.monotonic() - started) * 1000
    permissions = f"{stat.S_IMODE(mode.st_mode):04o}"
    private = not mode.st_mode & 0o077 and mode.st_uid in (0, os.geteuid())
    outcome.add("environment.file", private, expected, f"{path}, uid {mode.st_uid}, mode {permissions}", remedy, took)
    return environment

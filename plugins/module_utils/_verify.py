# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What celery_verify does on a worker host: ask the worker's own Python, and turn its answer into results."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import masked, secrets_of
from ansible_collections.celeryops.hybrid.plugins.module_utils._worker_process import RunError, environment_of, run

VERIFIER = "celery_hybrid.verify"
_KINDS: dict[str, Any] = {
    "name": str,
    "ok": bool,
    "expected": str,
    "actual": str,
    "remedy": str,
    "milliseconds": (int, float),
}


@dataclass
class Outcome:
    """The checks of one host."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    #: With the reason; that of those which the request leaves out is empty.
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
    more = {str(name): str(value) for name, value in (params["environment"] or {}).items()}
    secrets = secrets_of({**environment, **more})
    hide(secrets)
    started = time.monotonic()
    expected = f"{params['python']} runs {VERIFIER} as user {params['user']}"
    try:
        answer = (runner or run)(
            python=params["python"],
            user=params["user"],
            environment_file=params["environment_file"],
            environment=more,
            request=request_of(params),
            seconds=params["timeout"],
            program=VERIFIER,
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


def _read_environment(outcome: Outcome, path: Path) -> dict[str, str] | None:
    started = time.monotonic()
    expected = "an environment file that only root can read"
    remedy = "Run the site playbook against this host: the worker role writes it."
    try:
        environment = environment_of(str(path))
        mode = path.stat()
    except OSError as exc:
        outcome.add("environment.file", False, expected, f"{path}: {exc.strerror}", "Run the module with become: true.")
        return None
    except RunError as exc:
        outcome.add("environment.file", False, expected, exc.actual, exc.remedy)
        return None
    took = (time.monotonic() - started) * 1000
    permissions = f"{stat.S_IMODE(mode.st_mode):04o}"
    private = not mode.st_mode & 0o077 and mode.st_uid in (0, os.geteuid())
    outcome.add("environment.file", private, expected, f"{path}, uid {mode.st_uid}, mode {permissions}", remedy, took)
    return environment

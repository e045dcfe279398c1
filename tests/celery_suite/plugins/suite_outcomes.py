# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin: writes what became of each test, and bounds the time that a test may take.

A line of JSON for each report, written at once, so that a run that is stopped leaves what it knew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

OUTCOMES = Path(os.environ["CELERY_SUITE_OUTCOMES"])
#: Seconds for a test that Celery tries up to five times more, with 300 s each; no test of the backend's needs as many.
REPEATED_LIMIT = 120
#: Seconds for others. A test that is cut short can leave a worker behind that spoils the rest.
LIMIT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put our limit before that of a test."""
    for item in items:
        limit = REPEATED_LIMIT if item.get_closest_marker("flaky") else LIMIT
        own = item.get_closest_marker("timeout")
        seconds = own.kwargs.get("timeout", *own.args[:1]) if own else limit
        item.add_marker(pytest.mark.timeout(min(seconds, limit)), append=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a report down."""
    line = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "why": _why(report)}
    if hasattr(report, "wasxfail") and report.skipped:
        line |= {"outcome": "xfailed", "why": report.wasxfail}
    with OUTCOMES.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _why(report: pytest.TestReport) -> str:
    """Return the reason of a skip, or the first line of an error; nothing for a test that passed."""
    said: Any = report.longrepr
    if report.skipped and isinstance(said, tuple):
        return str(said[2])
    crash = getattr(said, "reprcrash", None)
    return next(iter((crash.message if crash is not None else str(said or "")).splitlines()), "")

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""With servers: gunicorn with two processes that were forked from one, and a worker."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.integration


def test_another_process_shows_the_result(web: Any) -> None:
    sent = web("/totals", {"numbers": [1, 2, 3]})
    where = f"/results/{sent['id']}"
    assert web(f"{where}?wait=10")["result"] == 6
    other = web.from_another(where, sent["process"])
    assert (other["state"], other["result"]) == ("SUCCESS", 6)


def test_every_process_waits_for_what_it_has_sent(web: Any) -> None:
    """Each was forked from the same parent, and has its own reply queue."""
    seen = set()
    for number in range(200):
        sent = web("/totals", {"numbers": [number, 1]})
        answer = web(f"/results/{sent['id']}?wait=10")
        assert (answer["state"], answer["result"]) == ("SUCCESS", number + 1)
        seen.add(sent["process"])
        if len(seen) == 2:
            return
    pytest.fail(f"only {seen} has answered")


def test_a_failure_is_shown_by_another_process(web: Any) -> None:
    sent = web("/totals", {"numbers": []})
    assert web(f"/results/{sent['id']}?wait=10")["state"] == "FAILURE"
    assert web.from_another(f"/results/{sent['id']}", sent["process"])["error"].startswith("ValueError")

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""With servers: gunicorn with two processes that were forked from one, a worker, and Django's own commands."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytestmark = pytest.mark.integration

BOOKS = {"item": "book", "quantity": 2}


def test_another_process_shows_the_result(web: Any) -> None:
    sent = web("/orders", BOOKS)
    where = f"/results/{sent['id']}"
    assert web(f"{where}?wait=10")["result"] == {"order": sent["order"], "total": 3998}
    other = web.from_another(where, sent["process"])
    assert (other["state"], other["result"]["total"]) == ("SUCCESS", 3998)


def test_every_process_waits_for_what_it_has_sent(web: Any) -> None:
    """Each was forked from the same parent, and has its own reply queue."""
    seen = set()
    for _ in range(200):
        sent = web("/orders", BOOKS)
        assert web(f"/results/{sent['id']}?wait=10")["result"]["order"] == sent["order"]
        seen.add(sent["process"])
        if len(seen) == 2:
            return
    pytest.fail(f"only {seen} has answered")


def test_a_shell_shows_the_result(web: Any, processes: Any) -> None:
    sent = web("/orders", BOOKS)
    code = f"from celery.result import AsyncResult; print(AsyncResult('{sent['id']}').get(timeout=20))"
    assert processes.run("django_shop.manage", "shell", "--command", code).splitlines()[-1] == str(
        {"order": sent["order"], "total": 3998}
    )


def test_a_shell_sends_and_waits(web: Any, processes: Any) -> None:
    order = web("/orders", BOOKS)["order"]
    code = f"from django_shop.orders.tasks import price_order; print(price_order.delay({order}).get(timeout=20))"
    assert processes.run("django_shop.manage", "shell", "--command", code).splitlines()[-1] == str(
        {"order": order, "total": 3998}
    )


def test_runserver_goes_on_after_a_reload(runserver: Any) -> None:
    server, log, watched = runserver
    before = server("/orders", BOOKS)
    assert server(f"/results/{before['id']}?wait=10")["state"] == "SUCCESS"
    watched.write_text("# changed\n")
    end = time.monotonic() + 30
    while True:
        try:
            after = server("/orders", BOOKS)
        except OSError:
            after = before
        if after["process"] != before["process"]:
            break
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    assert server(f"/results/{after['id']}?wait=10")["state"] == "SUCCESS"
    # Sent by the process that is no more.
    assert server(f"/results/{before['id']}")["result"]["total"] == 3998

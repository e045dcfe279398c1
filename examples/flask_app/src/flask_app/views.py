# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Sending a task, and showing what became of it."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from flask import Blueprint, current_app, request, url_for

from flask_app.tasks import total

LONGEST_WAIT = 10.0

views = Blueprint("views", __name__)

Answer = tuple[dict[str, Any], int, dict[str, str]]


@views.post("/totals")
def send() -> Answer:
    """Send a task; the answer says where its result will be."""
    body = request.get_json()
    numbers = body.get("numbers") if isinstance(body, dict) else None
    if not isinstance(numbers, list) or not all(type(number) in {int, float} for number in numbers):
        return {"error": 'send {"numbers": [1, 2, 3]}'}, 400, {}
    sent = total.delay(numbers)
    where = url_for("views.show", task_id=sent.id)
    return {"id": sent.id, "process": os.getpid()}, 202, {"Location": where}


@views.get("/results/<uuid:task_id>")
def show(task_id: Any) -> dict[str, Any]:
    """Show state and result of a task that any process has sent; wait for it if ``?wait=SECONDS`` is asked.

    Celery cannot tell a task that waits from one that never was: both are PENDING.
    """
    result = current_app.extensions["celery"].AsyncResult(str(task_id))
    wait = min(request.args.get("wait", 0.0, type=float), LONGEST_WAIT)
    if wait > 0:
        wait_for(result, wait)
    return {**described(result), "process": os.getpid()}


def wait_for(result: AsyncResult, seconds: float) -> None:
    """Wait until a task has ended, or for so many seconds."""
    with contextlib.suppress(CeleryTimeoutError):
        result.get(timeout=seconds, propagate=False)


def described(result: AsyncResult) -> dict[str, Any]:
    """Return state and result of a task, fit for JSON."""
    # Read once: the task may end between two looks.
    meta = result.backend.get_task_meta(result.id)
    state, value = meta["status"], meta["result"]
    if isinstance(value, BaseException):
        return {"id": result.id, "state": state, "error": f"{type(value).__name__}: {value}"}
    return {"id": result.id, "state": state, "result": value}

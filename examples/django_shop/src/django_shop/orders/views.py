# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Taking an order, and showing what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from django_shop.orders.models import Order
from django_shop.orders.tasks import price_order

LONGEST_WAIT = 10.0


@require_POST
def order(request: HttpRequest) -> JsonResponse:
    """Take an order and have it priced; the answer says where the result will be."""
    try:
        body = json.loads(request.body)
        item, quantity = str(body["item"])[:100], int(body["quantity"])
        if quantity < 1:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"error": 'send {"item": "book", "quantity": 2}'}, status=400)
    # A task that is sent before the commit may run before it, and find no order. What is sent on commit has no result
    # object yet, so it gets its id here.
    task_id = str(uuid.uuid4())
    with transaction.atomic():
        new = Order.objects.create(item=item, quantity=quantity)
        price_order.apply_async_on_commit(args=[new.pk], task_id=task_id)
    where = reverse("result", args=[task_id])
    answer = {"id": task_id, "order": new.pk, "process": os.getpid()}
    return JsonResponse(answer, status=202, headers={"Location": where})


@require_GET
def result(request: HttpRequest, task_id: uuid.UUID) -> JsonResponse:
    """Show state and result of a task that any process has sent; wait for it if ``?wait=SECONDS`` is asked.

    Celery cannot tell a task that waits from one that never was: both are PENDING.
    """
    known = AsyncResult(str(task_id))
    with contextlib.suppress(ValueError, CeleryTimeoutError):
        wait = min(float(request.GET.get("wait", 0)), LONGEST_WAIT)
        if wait > 0:
            known.get(timeout=wait, propagate=False)
    return JsonResponse({**described(known), "process": os.getpid()})


def described(known: AsyncResult) -> dict[str, Any]:
    """Return state and result of a task, fit for JSON."""
    # Read once: the task may end between two looks.
    meta = known.backend.get_task_meta(known.id)
    state, value = meta["status"], meta["result"]
    if isinstance(value, BaseException):
        return {"id": known.id, "state": state, "error": f"{type(value).__name__}: {value}"}
    return {"id": known.id, "state": state, "result": value}

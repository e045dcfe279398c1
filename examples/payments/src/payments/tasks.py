# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The tasks. ``process_payment`` is the one to learn from; the others are small and serve demo and tests."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import redis
from celery import Task
from celery.utils.log import get_task_logger

from celery_hybrid.guard import BeingDoneError, Claim, Guard
from payments.app import app
from payments.provider import PaymentDeclinedError, Provider, ProviderUnavailableError

logger = get_task_logger(__name__)

# The lease is longer than a run can last, and both are far below the broker's visibility timeout.
TIME_LIMIT = 60
LEASE = 90
KEEP = 7 * 24 * 3600


@cache
def server() -> redis.Redis:
    """Return this process's client of the Redis server that keeps claims and receipts.

    It is the broker unless ``PAYMENTS_REDIS_URL`` names another one. Any server does that never evicts keys.
    """
    url = os.environ.get("PAYMENTS_REDIS_URL") or app.conf.broker_url
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=30)


@app.task(
    name="payments.process_payment",
    bind=True,
    # What passes by itself is tried again, what does not is not: a declined payment fails at once.
    autoretry_for=(ProviderUnavailableError, redis.ConnectionError, redis.TimeoutError),
    # 1, 2, 4, … seconds, never more than ten minutes, each shortened at random so that many tasks
    # that failed together do not come back together.
    retry_backoff=True,
    retry_backoff_max=600,
    retry_jitter=True,
    max_retries=5,
    # Acknowledge after the work: a killed worker must not take the payment with it.
    acks_late=True,
    time_limit=TIME_LIMIT,
    soft_time_limit=TIME_LIMIT - 10,
)
def process_payment(self: Task, payment_id: str, amount: int, currency: str = "EUR") -> dict[str, Any]:
    """Charge a payment once, however often this task runs.

    Safe to run twice, one after the other or at the same time, and after a crash at any line: the
    guard lets one run at a time through and keeps the outcome; the provider, who gets the payment's
    id as idempotency key, closes the gap between charging and recording (see :mod:`celery_hybrid.guard`).

    Args:
        self: the task, bound.
        payment_id: names the payment everywhere; a duplicate of a payment has the same id.
        amount: in the smallest unit of the currency.
        currency: three-letter code.

    Returns:
        The receipt: ``payment_id``, ``amount``, ``currency``, ``reference``.

    Raises:
        ValueError: the arguments make no payment, or the id was charged with another amount.
        PaymentDeclinedError: the provider refused.
    """
    if not payment_id or amount <= 0:
        raise ValueError(f"Payment {payment_id!r} over {amount}: it needs an id and an amount above zero.")
    guard = Guard(server(), lease=LEASE, keep=KEEP, prefix="payments:guard:")
    try:
        claim = guard.claim(payment_id)
    except BeingDoneError as exc:
        # Not an error of this payment, so it does not use up its retries: come back when the claim has ended.
        logger.info("%s", exc)
        raise self.retry(exc=exc, countdown=exc.seconds + 1, max_retries=self.request.retries + 1) from exc
    if not isinstance(claim, Claim):
        if (claim["amount"], claim["currency"]) != (amount, currency):
            raise ValueError(f"Payment {payment_id} was charged before, over {claim['amount']} {claim['currency']}.")
        logger.info("payment %s was charged before", payment_id)
        charged: dict[str, Any] = claim
        return charged
    try:
        reference = Provider(server()).charge(payment_id, amount, currency)
    except (ProviderUnavailableError, PaymentDeclinedError):
        guard.release(claim)
        raise
    receipt = {"payment_id": payment_id, "amount": amount, "currency": currency, "reference": reference}
    guard.record(claim, receipt)
    logger.info("payment %s charged: %d %s", payment_id, amount, currency)
    return receipt


@app.task(name="payments.add")
def add(x: int, y: int) -> int:
    """Return a sum."""
    return x + y


@app.task(name="payments.total")
def total(numbers: list[int]) -> int:
    """Return the sum of a list, as the body of a chord gets it."""
    return sum(numbers)


@app.task(name="payments.where", bind=True)
def where(self: Task) -> str:
    """Return the name of the node that ran the task."""
    return str(self.request.hostname)


@app.task(name="payments.sleep")
def sleep(seconds: float) -> float:
    """Take some time, then return how much."""
    time.sleep(seconds)
    return seconds


@app.task(name="payments.fail")
def fail(reason: str = "as asked") -> None:
    """Fail, always.

    Raises:
        RuntimeError: with the given reason.
    """
    raise RuntimeError(reason)


@app.task(name="payments.progress", bind=True)
def progress(self: Task, steps: int = 3, seconds: float = 0.5) -> int:
    """Report a state of its own, ``PROGRESS``, before each step."""
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step, "of": steps})
        time.sleep(seconds)
    return steps

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A payment is charged once: run twice, at once, after a crash, after failures."""

from __future__ import annotations

import os
import threading
import uuid
from typing import Any

import pytest
import redis
from celery.exceptions import Retry

from celery_hybrid.guard import BeingDoneError, Claim, Guard, LostClaimError
from payments import app, tasks
from payments.provider import PaymentDeclinedError, Provider, ProviderUnavailableError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    """A Redis server: that of ``PAYMENTS_TEST_REDIS``, or a fake one."""
    url = os.environ.get("PAYMENTS_TEST_REDIS")
    client = redis.Redis.from_url(url) if url else pytest.importorskip("fakeredis").FakeRedis()
    monkeypatch.setattr(tasks, "server", lambda: client)
    return client


@pytest.fixture
def payment_id() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def guard(server: redis.Redis) -> Guard:
    return Guard(server, lease=5, keep=60, prefix="payments:guard:")


@pytest.fixture(autouse=True)
def memory_only() -> None:
    app.conf.update(task_always_eager=False, result_backend="cache+memory://", broker_url="memory://")


def pay(payment_id: str, amount: int = 1999, currency: str = "EUR") -> Any:
    """Run the task's body once, without a worker and without retries."""
    return tasks.process_payment.run(payment_id, amount, currency)


def test_a_payment_is_charged(server: redis.Redis, payment_id: str) -> None:
    receipt = pay(payment_id)
    assert receipt == {
        "payment_id": payment_id,
        "amount": 1999,
        "currency": "EUR",
        "reference": f"ref-{payment_id}",
    }
    assert Provider(server).charges(payment_id) == 1


def test_a_second_run_returns_the_same_receipt(server: redis.Redis, payment_id: str) -> None:
    assert pay(payment_id) == pay(payment_id)
    assert Provider(server).charges(payment_id) == 1


def test_the_same_id_with_another_amount_is_an_error(server: redis.Redis, payment_id: str) -> None:
    pay(payment_id)
    with pytest.raises(ValueError, match="was charged before, over 1999 EUR"):
        pay(payment_id, amount=5)


@pytest.mark.parametrize(("payment_id", "amount"), [("", 5), ("x", 0), ("x", -1)])
def test_invalid_payment_is_refused(server: redis.Redis, payment_id: str, amount: int) -> None:
    with pytest.raises(ValueError, match="needs an id and an amount"):
        pay(payment_id, amount)


def test_runs_at_the_same_time_charge_once(server: redis.Redis, payment_id: str) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(8)

    def one() -> None:
        together.wait()
        try:
            outcomes.append(pay(payment_id)["reference"])
        except BeingDoneError:
            outcomes.append("waits")

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert set(outcomes) <= {"waits", f"ref-{payment_id}"}
    assert f"ref-{payment_id}" in outcomes
    assert Provider(server).charges(payment_id) == 1


def test_while_another_run_is_at_work_this_one_waits(server: redis.Redis, payment_id: str) -> None:
    guard = Guard(server, lease=tasks.LEASE, keep=tasks.KEEP, prefix="payments:guard:")
    claim = guard.claim(payment_id)
    # As a worker calls it, not directly: then a retry is sent, not raised.
    tasks.process_payment.push_request(id=payment_id, called_directly=False, retries=0, args=[payment_id, 1999])
    try:
        with pytest.raises(Retry) as caught:
            pay(payment_id)
    finally:
        tasks.process_payment.pop_request()
    assert tasks.LEASE - 5 < caught.value.when <= tasks.LEASE + 1
    assert Provider(server).charges(payment_id) == 0
    assert isinstance(claim, Claim)
    guard.release(claim)
    pay(payment_id)


def test_crash_before_the_charge_does_not_block_indefinitely(server: redis.Redis, payment_id: str) -> None:
    guard = Guard(server, lease=1, keep=60, prefix="payments:guard:")
    guard.claim(payment_id)  # and then the worker is killed
    server.pexpire(f"payments:guard:{payment_id}", 1)
    threading.Event().wait(0.05)
    assert isinstance(guard.claim(payment_id), Claim)


def test_a_crash_between_charge_and_receipt_charges_once(
    server: redis.Redis, payment_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as crash:
        crash.setattr(Guard, "record", lambda *_: (_ for _ in ()).throw(SystemExit("killed")))
        with pytest.raises(SystemExit):
            pay(payment_id)
    assert Provider(server).charges(payment_id) == 1
    server.delete(f"payments:guard:{payment_id}")  # the claim has run out
    pay(payment_id)
    # The provider knew the key.
    assert Provider(server).charges(payment_id) == 1


def test_no_answer_of_the_provider_gives_the_claim_back(server: redis.Redis) -> None:
    payment_id = f"unavailable-1-{uuid.uuid4().hex}"
    with pytest.raises((ProviderUnavailableError, Retry)):
        pay(payment_id)
    assert server.get(f"payments:guard:{payment_id}") is None
    assert pay(payment_id)["reference"] == f"ref-{payment_id}"


def test_a_declined_payment_fails_at_once_and_is_not_kept(server: redis.Redis) -> None:
    payment_id = f"declined-{uuid.uuid4().hex}"
    with pytest.raises(PaymentDeclinedError):
        pay(payment_id)
    assert server.get(f"payments:guard:{payment_id}") is None


def test_a_run_that_outlives_its_lease_notices(server: redis.Redis, guard: Guard, payment_id: str) -> None:
    claim = guard.claim(payment_id)
    assert isinstance(claim, Claim)
    server.delete(f"payments:guard:{payment_id}")
    other = guard.claim(payment_id)
    assert isinstance(other, Claim)
    with pytest.raises(LostClaimError, match="longer than the task's time limit"):
        guard.record(claim, {"reference": "late"})
    guard.release(claim)
    # Neither took away what belongs to the other run.
    with pytest.raises(BeingDoneError):
        guard.claim(payment_id)


def test_claims_and_receipts_end(server: redis.Redis, guard: Guard, payment_id: str) -> None:
    claim = guard.claim(payment_id)
    assert isinstance(claim, Claim)
    assert 0 < server.ttl(f"payments:guard:{payment_id}") <= 5
    guard.record(claim, {"reference": "r"})
    assert 5 < server.ttl(f"payments:guard:{payment_id}") <= 60
    assert guard.claim(payment_id) == {"reference": "r"}


def test_retries_are_bounded_and_grow() -> None:
    task = tasks.process_payment
    assert (task.max_retries, task.retry_backoff_max, task.retry_jitter) == (5, 600, True)
    assert task.acks_late
    # A claim outlives every run, and a run ends long before Redis would hand its message on.
    assert task.time_limit < tasks.LEASE < 3600


def test_the_application_holds_no_setting() -> None:
    source = (tasks.__file__ or "").replace("tasks.py", "app.py")
    with open(source) as handle:  # noqa: PTH123
        text = handle.read()
    assert "conf" not in text.split('"""')[2]


def test_small_tasks(server: redis.Redis) -> None:
    assert tasks.add(2, 3) == 5
    assert tasks.total([1, 2, 3]) == 6
    assert tasks.sleep(0) == 0
    with pytest.raises(RuntimeError, match="because"):
        tasks.fail("because")


def test_names_are_those_of_the_documentation() -> None:
    names = {name for name in app.tasks if name.startswith("payments.")}
    app.loader.import_default_modules()
    assert names == {
        f"payments.{name}" for name in ("process_payment", "add", "total", "where", "sleep", "fail", "progress")
    }

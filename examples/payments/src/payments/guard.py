# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A guard that lets a piece of work happen once, although its task may run more than once.

Late acknowledgement means *at least once*: a task runs again when its worker was killed, when the
connection to Redis broke, or when it ran longer than the visibility timeout. Two runs of it may even
be under way at the same time.

The guard keeps one record per key in Redis:

=========  =====================================  ==========================================
record     meaning                                what another run does
=========  =====================================  ==========================================
(none)     nobody has begun                       claims it, atomically (``SET NX``), and works
claim      a run is at work, or died at it        waits until the claim is settled or runs out
receipt    the work is done; its outcome is here  returns the outcome, does nothing
=========  =====================================  ==========================================

What it guarantees, as long as Redis keeps its data:

* of any number of runs, one after the other or at once, only one at a time works;
* once an outcome is recorded, no run works again until ``keep`` seconds have passed;
* a run that was killed does not block the key for ever: its claim runs out after ``lease`` seconds.

What it cannot guarantee, and nobody can from this side alone:

* A run that dies *after* the outside world has acted and *before* the receipt is recorded leaves a
  claim. The next run takes over and acts again. Hence the outside world must know the key as well:
  hand it on as the idempotency key of the payment provider, as ``payments.provider`` does.
* ``lease`` must be longer than a run can last (the task's hard time limit). A run that outlives its
  lease may meet a second one; it notices when it wants to record, and says so with :exc:`LostClaimError`.
* Redis with ``appendfsync everysec`` may lose its last second in a power failure, and a claim with it.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import redis

# Both compare the token first: only the run that holds the claim may settle it.
_RECORD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class BeingDoneError(Exception):
    """Another run is at work on the key, or died at it; its claim settles within ``seconds``."""

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(key, seconds)
        self.key = key
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.key} is being done by another run, whose claim ends in {self.seconds:.0f} s at the latest"


class LostClaimError(Exception):
    """The claim ran out before the outcome was recorded: ``lease`` is shorter than the work."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """The right to do the work of one key, held by one run."""

    key: str
    token: str


class Guard:
    """Claims and receipts in Redis.

    Args:
        server: a client of the Redis server; the rights to use strings and scripts are enough.
        lease: seconds after which the claim of a dead run ends; longer than any run can last.
        keep: seconds for which a receipt is kept; longer than a duplicate can be late.
    """

    def __init__(self, server: redis.Redis, *, lease: int, keep: int, prefix: str = "payments:guard:") -> None:
        self._server = server
        self._lease = lease
        self._keep = keep
        self._prefix = prefix

    def claim(self, key: str) -> Claim | dict[str, Any]:
        """Claim the work of a key.

        Returns:
            A :class:`Claim` when this run shall do the work; the recorded outcome when it is done already.

        Raises:
            BeingDoneError: another run holds the claim.
        """
        name = self._prefix + key
        claim = Claim(key, f"claim:{uuid.uuid4().hex}")
        # Two tries: the record that was in the way may run out between SET and GET.
        for _ in range(2):
            if self._server.set(name, claim.token, nx=True, ex=self._lease):
                return claim
            record = self._server.get(name)
            if record is None:
                continue
            text = record.decode() if isinstance(record, bytes) else str(record)
            if not text.startswith("claim:"):
                outcome: dict[str, Any] = json.loads(text)
                return outcome
            remaining = self._server.pttl(name)
            raise BeingDoneError(key, max(0.0, int(remaining) / 1000))
        raise BeingDoneError(key, 1.0)

    def record(self, claim: Claim, outcome: dict[str, Any]) -> None:
        """Record the outcome; from now on every run returns it.

        Raises:
            LostClaimError: the claim had run out, so another run may have done the work as well.
        """
        name = self._prefix + claim.key
        if not self._server.eval(_RECORD, 1, name, claim.token, json.dumps(outcome), str(self._keep)):
            raise LostClaimError(
                f"The claim on {claim.key} ran out after {self._lease} s, before the work was done: "
                "make the lease longer than the task's time limit."
            )

    def release(self, claim: Claim) -> None:
        """Give the claim back, because nothing happened: the next run need not wait for its end."""
        self._server.eval(_RELEASE, 1, self._prefix + claim.key, claim.token)

"""A guard that lets a piece of work happen once, although its task may run more than once.

Late acknowledgement means *at least once*: a task runs again when its worker was killed, or when Redis was away for
longer than the visibility timeout. Two runs of it may even be under way at the same time.

The guard keeps one record per key:

=========  =====================================  ==========================================
record     meaning                                what another run does
=========  =====================================  ==========================================
(none)     no run has begun                       claims it, atomically, and works
claim      a run is at work, or died at it        waits until the claim is settled or runs out
receipt    the work is done; its outcome is here  returns the outcome, does nothing
=========  =====================================  ==========================================

What it guarantees, as long as its records are kept:

* of any number of runs, one after the other or concurrently, only one at a time works;
* once an outcome is recorded, no run works again until ``keep`` seconds have passed;
* a run that was killed does not block the key indefinitely: its claim runs out after ``lease`` seconds.

What it cannot guarantee, because it is impossible from this side alone:

* A run that dies *after* the outside world has acted and *before* the receipt is recorded leaves a claim. The next run
  takes over and acts again. Hence the outside world must know the key as well: hand it on as the idempotency key.
* ``lease`` must be longer than a run can last (the task's hard time limit). A run that outlives its lease may meet a
  second one; it notices when it wants to record, and says so with :exc:`LostClaimError`. When there was none, its
  outcome is recorded all the same.
* Redis with ``appendfsync everysec`` may lose its last second in a power failure, and its last two when it is killed
  while its disk is busy; a claim with it. ``appendfsync always`` loses none.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from celery_hybrid.errors import HybridError

_CLAIM = "claim:"
# Between an outcome in JSON and the claim it was recorded with.
_OF = "\n"

# A transaction each; all but the first compare the claim: only the run that holds it may settle it.
_BEGIN = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return false end
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""
_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
_REMOVE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class BeingDoneError(HybridError):
    """Another run is at work on the key, or died at it; its claim settles within ``seconds``."""

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(key, seconds)
        self.key = key
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.key} is being done by another run, whose claim ends in {self.seconds:.0f} s at the latest"


class LostClaimError(HybridError):
    """The claim ran out before the outcome was recorded, and another run has begun."""


@dataclass(frozen=True)
class Claim:
    """The right to do the work of one key, held by one run."""

    key: str
    token: str


class Records(Protocol):
    """Where claims and receipts are: Redis, or a table of your database. Each call is one atomic step."""

    def begin(self, name: str, text: str, seconds: int) -> tuple[str, float] | None:
        """Write a record that ends after so many seconds, unless there is one.

        Returns:
            None when it was written; else the text of the other, and the seconds that it has left.
        """

    def replace(self, name: str, text: str, new: str, seconds: int) -> bool:
        """Replace a record that still has that text; return whether it was so."""

    def remove(self, name: str, text: str) -> bool:
        """Remove a record that still has that text; return whether it was so."""


class RedisRecords:
    """Records in Redis.

    Args:
        server: a client of a server that never evicts keys, as the broker; the rights to SET, GET, DEL, PTTL and EVAL
            are enough.
    """

    def __init__(self, server: Any) -> None:
        self._server = server

    def begin(self, name: str, text: str, seconds: int) -> tuple[str, float] | None:
        """See :class:`Records`."""
        found = self._server.eval(_BEGIN, 1, name, text, seconds)
        if not found:
            return None
        other, left = found
        return other.decode() if isinstance(other, bytes) else str(other), max(0.0, int(left) / 1000)

    def replace(self, name: str, text: str, new: str, seconds: int) -> bool:
        """See :class:`Records`."""
        return bool(self._server.eval(_REPLACE, 1, name, text, new, seconds))

    def remove(self, name: str, text: str) -> bool:
        """See :class:`Records`."""
        return bool(self._server.eval(_REMOVE, 1, name, text))


class Guard:
    """Lets the work of a key happen once.

    Args:
        records: where claims and receipts are; a client of Redis will do.
        lease: seconds after which the claim of a dead run ends; longer than any run can last.
        keep: seconds for which a receipt is kept; longer than a duplicate can be late.
        prefix: of the names of the records.
    """

    def __init__(self, records: Any, *, lease: int, keep: int, prefix: str = "celery.guard.") -> None:
        self._records: Records = records if hasattr(records, "begin") else RedisRecords(records)
        self._lease = lease
        self._keep = keep
        self._prefix = prefix

    def once(self, key: str, work: Callable[[], Any], harmless: tuple[type[BaseException], ...] = ()) -> Any:
        """Do the work of a key, unless it was done; return its outcome, which JSON can hold.

        Args:
            key: names the work, not the run: a duplicate has the same.
            work: is called without arguments.
            harmless: exceptions of the work that mean that nothing has happened: the next run may begin immediately.
                After any other it waits until the claim has run out.

        Raises:
            BeingDoneError: another run holds the claim.
            LostClaimError: the claim had run out before the work was done, and another run has begun.
        """
        claim = self.claim(key)
        if not isinstance(claim, Claim):
            return claim
        try:
            outcome = work()
        except harmless:
            self.release(claim)
            raise
        self.record(claim, outcome)
        return outcome

    def claim(self, key: str) -> Any:
        """Claim the work of a key.

        Returns:
            A :class:`Claim` when this run shall do the work; the recorded outcome when it is done already.

        Raises:
            BeingDoneError: another run holds the claim.
        """
        claim = Claim(key, f"{_CLAIM}{uuid.uuid4().hex}")
        found = self._records.begin(self._prefix + key, claim.token, self._lease)
        if found is None:
            return claim
        text, seconds = found
        if text == claim.token:
            # The client of Redis has asked again, because the answer to its first question was lost.
            return claim
        if text.startswith(_CLAIM):
            raise BeingDoneError(key, seconds)
        return json.loads(text.partition(_OF)[0])

    def record(self, claim: Claim, outcome: Any) -> None:
        """Record the outcome; from now on every run returns it.

        Raises:
            LostClaimError: the claim had run out, and another run has begun, so the work may be done twice.
        """
        name, receipt = self._prefix + claim.key, f"{json.dumps(outcome)}{_OF}{claim.token}"
        if self._records.replace(name, claim.token, receipt, self._keep):
            return
        # The claim has run out, and no run has begun since: the work is done, and the next run shall know.
        found = self._records.begin(name, receipt, self._keep)
        # Our own receipt stands there when a client of Redis has asked again, because an answer was lost.
        if found is not None and found[0] != receipt:
            raise LostClaimError(
                f"The claim on {claim.key} ran out after {self._lease} s, before the work was done, and another run "
                "has begun: make the lease longer than the task's time limit."
            )

    def release(self, claim: Claim) -> None:
        """Give the claim back, because nothing happened: the next run need not wait for its end."""
        self._records.remove(self._prefix + claim.key, claim.token)

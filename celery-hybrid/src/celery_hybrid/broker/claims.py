"""Claims: who has taken a message, and since when.

A take gives each message a name of its own in ``unacked`` and its index::

    <delivery tag>:<incarnation>.<take>.<place>

The incarnation is 12 hexadecimal digits that each process draws again, also after a fork; takes are counted by the
process, places within the take. A name is used once, so it is a fencing token: renewing, acknowledging or putting back
by name cannot touch the claim of another worker that has got the message since.
"""

from __future__ import annotations

import itertools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable

_NAME = re.compile(r"(?s)(.*):([0-9a-f]{12})\.\d+\.\d+")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds of a clock that cannot be set, and that goes on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


def tag_of(name: str) -> str:
    """Return the delivery tag of the message in a claim; the name itself when stock kombu has made it."""
    found = _NAME.fullmatch(name)
    return found[1] if found else name


def incarnation_of(name: str) -> str | None:
    """Return which process has made a claim; None when stock kombu has."""
    found = _NAME.fullmatch(name)
    return found[2] if found else None


class Incarnation:
    """This process, as its claims name it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Be a new one."""
        self.id = uuid.uuid4().hex[-12:]
        self._takes = itertools.count(1)
        #: Takes whose answer is lost with its connection, and until when to look for what they took.
        self.unanswered: dict[str, float] = {}
        #: Names of channels that had the watch of queues when they lost their connections.
        self.watchers: list[str] = []

    def next_take(self) -> str:
        """Return what claims of a new take are called, without their tags and places."""
        return f"{self.id}.{next(self._takes)}"

    def next_watcher(self) -> str:
        """Return what a channel that watches queues is called: as one that has lost its connection, if there is one."""
        return self.watchers.pop() if self.watchers else self.next_take()


#: Of this process.
INCARNATION = Incarnation()
os.register_at_fork(after_in_child=INCARNATION.begin)


class Suspects:
    """Claims that were seen overdue.

    One look is not enough to take a message away from a worker: after a pause of this one, an outage of Redis or a
    jump of its clock all claims look overdue at the same time. Their owners renew them within the grace.

    Args:
        clock: returns seconds, also those of a suspended machine.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def due(self, found: Iterable[tuple[str, str]], grace: float) -> list[tuple[str, str]]:
        """Return those that were seen before with the same score, long enough ago; remember all others.

        Args:
            found: names and scores of all claims that are overdue now.
            grace: seconds.
        """
        now, seen, due = self._clock(), {}, []
        for name, score in found:
            known, since = self._seen.get(name, (None, now))
            since = since if known == score else now
            seen[name] = score, since
            if now - since >= grace:
                due.append((name, score))
        self._seen = seen
        return due

"""When the records of one stream were stored: known from the stream itself, not from their publishers' clocks.

RabbitMQ dates chunks, not records, and tells no reader. But a stream only grows at its end: what lies before an offset
was stored before what lies behind it. So every reading says something about the age of all that came before, and the
server can be asked for the first record that was stored after a time (``x-stream-offset`` as a timestamp, its own
clock: https://www.rabbitmq.com/docs/streams#consuming).

A record's own timestamp is its publisher's clock, and counts only between these bounds: whatever it claims, a record
that was seen to arrive an hour ago is an hour old.
"""

from __future__ import annotations

import bisect
import time

#: Marks are at least this part of ``expires`` apart.
_PARTS = 64


class Ages:
    """What is known of the ages of one stream's records.

    Times are of this process's monotonic clock.

    Args:
        expires: seconds after which a record is not seen any more; None for never.
    """

    def __init__(self, expires: float | None) -> None:
        self._expires = expires
        # What lies before an offset was stored before a time, what lies at or behind it later. Both grow.
        self._offsets: list[int] = []
        self._times: list[float] = []

    def mark(self, offset: int, at: float) -> None:
        """Note that the stream ended before an offset at a time.

        What contradicts an earlier mark is left out: the clocks of this host and of the server differ.
        """
        if not self._expires:
            return
        place = bisect.bisect_right(self._times, at)
        before, behind = self._offsets[:place], self._offsets[place:]
        if (before and before[-1] > offset) or (behind and behind[0] < offset):
            return
        if place and place == len(self._times) and at - self._times[-1] < self._expires / _PARTS:
            return
        self._offsets.insert(place, offset)
        self._times.insert(place, at)
        # The newest of those that are expired is enough.
        surplus = bisect.bisect_left(self._times, time.monotonic() - self._expires) - 1
        if surplus > 0:
            del self._offsets[:surplus], self._times[:surplus]

    def horizon(self) -> int:
        """Return an offset before which everything is expired."""
        if not self._expires:
            return 0
        place = bisect.bisect_left(self._times, time.monotonic() - self._expires)
        return self._offsets[place - 1] if place else 0

    def live_from(self) -> int | None:
        """Return the first offset from which on everything is known not to be expired; None when none is known."""
        if not self._expires:
            return 0
        place = bisect.bisect_left(self._times, time.monotonic() - self._expires)
        return self._offsets[place] if place < len(self._offsets) else None

    def expired(self, offset: int, timestamp: int) -> bool | None:
        """Return whether a record is expired.

        Args:
            offset: of the record.
            timestamp: its publisher's, in seconds since the epoch.

        Returns:
            None when only its publisher says so; the server knows.
        """
        if not self._expires or offset < 0:
            return False
        limit = time.monotonic() - self._expires
        place = bisect.bisect_right(self._offsets, offset)
        if place and self._times[place - 1] >= limit:
            return False
        if place < len(self._times) and self._times[place] < limit:
            return True
        return None if timestamp + self._expires < time.time() else False

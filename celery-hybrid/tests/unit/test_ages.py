"""The ages of records follow from the stream; a publisher's clock counts between what is known only."""

from __future__ import annotations

import pytest

from celery_hybrid.archive import ages as module
from celery_hybrid.archive.ages import Ages

EXPIRES = 100.0


class Clock:
    """Both clocks of this host; they may differ from anybody else's."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000.0 + self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_expiry_nothing_expires(clock):
    ages = Ages(None)
    ages.mark(5, clock.now)
    clock.now += 1e9
    assert (ages.horizon(), ages.expired(1, 0)) == (0, False)


@pytest.mark.parametrize("claimed", [-1e6, 0, 1e6], ids=["late", "right", "ahead"])
def test_what_was_seen_to_arrive_has_that_age_whatever_its_publisher_says(clock, claimed):
    ages = Ages(EXPIRES)
    ages.mark(10, clock.now)
    timestamp = int(clock.time() + claimed)
    clock.now += 10
    ages.mark(20, clock.now)  # so 10 to 19 came in these ten seconds
    clock.now += 80
    assert ages.expired(15, timestamp) is False
    clock.now += 30
    assert ages.expired(15, timestamp) is True
    assert ages.horizon() == 20


def test_between_what_is_known_the_publisher_counts_and_only_the_server_contradicts_it(clock):
    ages = Ages(EXPIRES)
    ages.mark(20, clock.now)
    assert ages.expired(5, int(clock.time() - 50)) is False
    assert ages.expired(5, int(clock.time() - 150)) is None
    # The server: its first record that is not expired has the offset 3.
    ages.mark(3, clock.now - EXPIRES)
    assert ages.expired(5, int(clock.time() - 150)) is False
    clock.now += 1
    assert ages.expired(2, int(clock.time())) is True
    assert ages.horizon() == 3


def test_a_server_whose_clock_differs_does_not_contradict_what_was_seen(clock):
    ages = Ages(EXPIRES)
    ages.mark(10, clock.now)
    clock.now += 5
    ages.mark(50, clock.now - EXPIRES)
    clock.now += 1
    assert ages.horizon() == 0
    assert ages.expired(10, 0) is False


def test_the_number_of_marks_is_bounded(clock):
    ages = Ages(EXPIRES)
    for offset in range(100_000):
        clock.now += 0.01
        ages.mark(offset, clock.now)
    assert len(ages._times) < 100
    assert ages.horizon() > 80_000

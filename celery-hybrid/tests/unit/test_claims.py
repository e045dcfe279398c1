"""Names of claims, and what is taken for overdue."""

from __future__ import annotations

import os
import re

from celery_hybrid.broker import claims
from celery_hybrid.broker.claims import Incarnation, Suspects


def test_name_tells_the_tag_and_the_incarnation():
    assert claims.tag_of("a:b:0123456789ab.7.0") == "a:b"
    assert claims.incarnation_of("a:b:0123456789ab.7.0") == "0123456789ab"
    assert claims.tag_of("of-stock-kombu") == "of-stock-kombu"
    assert claims.incarnation_of("of-stock-kombu") is None


def test_takes_of_a_process_are_counted():
    process = Incarnation()
    takes = [process.next_take() for _ in range(3)]
    assert takes == [f"{process.id}.{number}" for number in (1, 2, 3)]
    assert re.fullmatch("[0-9a-f]{12}", process.id)


def test_forked_process_is_another_incarnation():
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        os.write(write_end, claims.INCARNATION.next_take().encode())
        os._exit(0)
    os.waitpid(child, 0)
    incarnation, take = os.read(read_end, 100).decode().split(".")
    os.close(read_end)
    os.close(write_end)
    assert incarnation != claims.INCARNATION.id
    assert take == "1"


def test_watch_of_a_lost_connection_goes_to_the_next():
    process = Incarnation()
    process.watchers.append("before")
    assert process.next_watcher() == "before"
    assert process.next_watcher() != "before"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def looked(suspects, clock, *looks):
    found = []
    for seconds, claims_found in looks:
        clock.now += seconds
        found.append([name for name, _ in suspects.due(claims_found, 15)])
    return found


def test_claim_is_due_when_it_is_seen_again_after_the_grace():
    clock = Clock()
    suspects = Suspects(clock)
    one = [("a", "1")]
    assert looked(suspects, clock, (0, one), (14, one), (1, one), (5, one)) == [[], [], ["a"], ["a"]]


def test_claim_that_was_renewed_or_moved_begins_again():
    clock = Clock()
    suspects = Suspects(clock)
    assert looked(suspects, clock, (0, [("a", "1")]), (20, [("a", "2")]), (10, [("a", "2")])) == [[], [], []]
    assert looked(suspects, clock, (0, []), (10, [("a", "2")])) == [[], []]


def test_nothing_is_due_at_the_first_look_after_a_pause():
    clock = Clock()
    suspects = Suspects(clock)
    assert looked(suspects, clock, (0, []), (7200, [("a", "1"), ("b", "1")])) == [[], []]
    assert len(suspects) == 2

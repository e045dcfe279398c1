from __future__ import annotations

from celery_hybrid.index import Evicted, Index
from celery_hybrid.records import RESULT, Record

LIMIT = 64 * 1024


def result(number, status="SUCCESS", size=100):
    return Record(f"id-{number}", RESULT, status=status, body=b"x" * size)


def key(number):
    return (RESULT, f"id-{number}")


def test_absent_is_known():
    entry = Index(LIMIT).get(key(1), 0)
    assert entry is not None
    assert entry.record is None


def test_outcome_is_kept():
    index = Index(LIMIT)
    index.add(result(1, "STARTED"), 0)
    index.add(result(1, "SUCCESS"), 0)
    index.add(result(1, "STARTED"), 0)
    assert index.get(key(1), 0).record.status == "SUCCESS"
    assert len(index) == 1


def test_memory_is_bounded():
    index = Index(LIMIT)
    for number in range(5000):
        index.add(result(number), 0)
        assert index.size <= LIMIT
    assert 0 < len(index) < 100
    assert index.get(key(4999), 0).record is not None


def test_size_follows_replacement():
    index = Index(LIMIT)
    for size in (10, 20_000, 10):
        index.add(result(1, "STARTED", size), 0)
    small = index.size
    index.forget_partition(0)
    assert index.size == 0
    assert small < 2000


def test_forgotten_ids_are_not_taken_for_absent():
    index = Index(LIMIT)
    for number in range(1000):
        index.add(result(number), 0)
    assert index.get(key(0), 0) is None
    # What comes later for it is not all there is.
    index.add(result(0, "STARTED"), 0)
    assert index.get(key(0), 0) is None
    index.replace(key(0), result(0), 0)
    assert index.get(key(0), 0).record.status == "SUCCESS"


def test_a_tombstone_hides_what_was_forgotten():
    index = Index(LIMIT)
    for number in range(1000):
        index.add(result(number), 0)
    index.add(Record.tombstone("id-0", RESULT), 0)
    assert index.get(key(0), 0).record.kind == "forget"


def test_least_recently_used_goes_first():
    index = Index(LIMIT)
    for number in range(1000):
        index.add(result(number), 0)
        index.get(key(0), 0)
    assert index.get(key(0), 0).record is not None


def test_partitions_are_apart():
    index = Index(LIMIT)
    index.add(result(1), 0)
    index.add(result(2), 1)
    index.forget_partition(0)
    assert index.get(key(1), 0).record is None
    assert index.get(key(2), 1).record is not None


def test_false_alarms_are_rare():
    evicted = Evicted()
    for number in range(200_000):
        evicted.add(key(number))
    assert all(key(number) in evicted for number in range(0, 200_000, 97))
    alarms = sum(key(number) in evicted for number in range(200_000, 220_000))
    assert alarms < 20

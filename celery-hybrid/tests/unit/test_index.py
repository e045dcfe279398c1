"""What is remembered of the archive: the same outcomes as records.outcome, within a bound."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from celery_hybrid.rabbitmq.records import FORGET, GROUP, RESULT, Record, outcome
from celery_hybrid.results import index as module
from celery_hybrid.results.index import At, Index, Known, Ledger, Places, place

LIMIT = 64 * 1024


def key(number):
    return (RESULT, f"id-{number}")


def result(number, status="SUCCESS", offset=0, size=100):
    return Record(f"id-{number}", RESULT, status=status, body=b"x" * size, timestamp=1000, offset=offset)


def places_of(records, begin):
    places = Places(begin, len(records))
    for offset, record in enumerate(records, begin):
        places.put(offset, place(record.kind, record.subject, record.status, record.id), record.timestamp)
    return places


def filled(*records, limit=LIMIT, begin=0):
    index = Index(limit, 2)
    index.extend(0, places_of(records, begin))
    return index


def test_absent_is_known():
    assert filled(result(1)).find(key(2), 0) == Known(None)
    assert Index(LIMIT, 1).find(key(1), 0) == Known(None)


def test_partitions_are_apart():
    assert filled(result(1)).find(key(1), 1) == Known(None)


def test_a_record_is_found_at_its_offset():
    index = filled(*(result(number) for number in range(500)), begin=700)
    assert index.find(key(123), 0) == At(823)
    index.keep(0, kept := result(123, offset=823))
    assert index.find(key(123), 0) == Known(kept)


def test_a_task_and_a_group_may_have_the_same_id():
    index = filled(Record("x", GROUP, subject=GROUP), Record("x", RESULT, status="SUCCESS"))
    assert index.find((GROUP, "x"), 0) == At(0)
    assert index.find((RESULT, "x"), 0) == At(1)
    index.extend(0, places_of([Record.tombstone("x", GROUP)], 2))
    assert index.find((GROUP, "x"), 0) == At(2)
    assert index.find((RESULT, "x"), 0) == At(1)


def test_what_is_no_record_is_not_found():
    assert place("seed", "seed", "", "") == place("other", "other", "", "id-1") == 0


def history(random_, count):
    """Return records of few ids, in all states."""
    made = []
    for offset in range(count):
        number = random_.randrange(4)
        choice = random_.randrange(10)
        if choice == 0:
            made.append(Record(f"id-{number}", FORGET, subject=RESULT, timestamp=1000, offset=offset))
        else:
            status = "SUCCESS" if choice < 4 else random_.choice(["STARTED", "FAILURE", "PROGRESS"])
            made.append(result(number, status, offset))
    return made


def folded(records, wanted):
    held = None
    for record in records:
        if record.key == wanted:
            held = outcome(held, record)
    return held


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_are_those_of_the_records(seed):
    """Read in pieces, with and without whole records, and after a fold somewhere."""
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    records = history(random_, 60)
    index = Index(LIMIT, 1)
    done = 0
    while done < len(records):
        piece = records[done : done + random_.randint(1, 9)]
        index.extend(0, places_of(piece, done))
        done += len(piece)
        for number in range(4):
            expected = folded(records[:done], key(number))
            found = index.find(key(number), 0)
            if isinstance(found, At):
                found = Known(records[found.offset])
                if random_.random() < 0.5:
                    index.keep(0, found.record)
            assert found == Known(expected)
            if random_.random() < 0.1:
                index.fold(key(number), expected, done, 0)


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_after_the_oldest_were_forgotten(seed):
    """Either right, or not known; and right for ever after all was read again."""
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    records = history(random_, 60)
    index = Index(LIMIT, 1)
    index.extend(0, places_of(records[:30], 0))
    index._ledgers[0].cut(random_.randint(1, 29))
    index._ledgers[0].truncated = True
    for number in range(4):
        if index.find(key(number), 0) is None:
            index.fold(key(number), folded(records[:30], key(number)), 30, 0)
    for end in range(31, 60):
        index.extend(0, places_of(records[end - 1 : end], end - 1))
        for number in range(4):
            found = index.find(key(number), 0)
            assert found is not None
            record = records[found.offset] if isinstance(found, At) else found.record
            assert record == folded(records[:end], key(number))


def test_what_was_forgotten_is_not_taken_for_absent():
    index = Index(LIMIT, 2)
    for begin in range(0, 20_000, 500):
        index.extend(0, places_of([result(number) for number in range(begin, begin + 500)], begin))
    assert index.find(key(0), 0) is None
    # There may have been an earlier SUCCESS.
    assert index.find(key(19_999), 0) is None
    assert index.find(key("new"), 0) is None
    assert index.find(key("new"), 1) == Known(None)
    # A tombstone hides whatever was forgotten.
    index.extend(0, places_of([Record.tombstone("id-0", RESULT)], 20_000))
    assert index.find(key(0), 0) == At(20_000)
    index.extend(0, places_of([result(0)], 20_001))
    assert index.find(key(0), 0) == At(20_001)


def test_a_collision_is_not_taken_for_the_record(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda _: 0x1234567800, raising=False)
    index = filled(result(1), result(2))
    assert index.find(key(1), 0) == At(0)
    index.keep(0, result(1, offset=0))
    assert index.find(key(2), 0) is None
    index.fold(key(2), second := result(2, offset=1), 2, 0)
    assert index.find(key(2), 0) == Known(second)


def test_hashes_are_found_at_whole_places_only(monkeypatch):
    """Seven bytes may also match across two places."""
    monkeypatch.setattr(module, "hash", lambda key: key, raising=False)
    ledger = Ledger()
    places = Places(0, 2)
    places.put(0, 0x2222222222222201, 0)
    places.put(1, 0x2222222222222222, 0)
    ledger.extend(places)
    assert list(ledger.of(0x2222222222222200, 0)) == [(1, 0), (0x22, 1)]


def test_expired_records_are_forgotten_without_doubt():
    index = Index(LIMIT, 1)
    for begin in range(0, 6000, 1000):
        index.extend(0, places_of([result(number) for number in range(begin, begin + 1000)], begin))
    places = places_of([result("late")], 6000)
    places.newest = 5000
    index.extend(0, places)
    before = index.size
    index.expire(0, 2000)
    assert index.size < before / 2
    assert index.find(key(1), 0) == Known(None)
    assert index.find(key("late"), 0) == At(6000)


def test_a_new_stream_begins_anew():
    index = filled(result(1), begin=50)
    index.keep(0, result(1, offset=50))
    index.fold(key(7), result(7), 51, 0)
    index.extend(1, places_of([result(1)], 50))
    index.keep(1, result(1, offset=50))
    index.restart(0)
    assert index.find(key(1), 0) == index.find(key(7), 0) == Known(None)
    assert isinstance(index.find(key(1), 1), Known)
    assert len(index) == 1
    index.extend(0, places_of([result(1)], 0))
    assert index.find(key(1), 0) == At(0)


def test_least_recently_used_goes_first():
    index = filled(*(result(number) for number in range(200)))
    for number in range(200):
        index.keep(0, result(number, offset=number))
        index.find(key(0), 0)
    assert isinstance(index.find(key(0), 0), Known)
    assert index.find(key(1), 0) == At(1)


def test_gaps_are_refused():
    with pytest.raises(ValueError, match="not next"):
        filled(result(1)).extend(0, places_of([result(2)], 5))


@pytest.mark.parametrize("size", [0, 300, 5000])
def test_memory_is_what_it_says_and_bounded(size):
    limit = 4 << 20
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        index = Index(limit, 4)
        for begin in range(0, 600_000, 1000):
            index.extend(begin // 1000 % 4, Places(begin // 4000 * 1000, 1000))
            for offset in range(begin, begin + 20):
                index.keep(0, Record(f"{offset:036}", RESULT, status="SUCCESS"[:7], body=bytes(size), offset=offset))
            assert index.size <= limit
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= index.size <= limit
    assert len(index) > 100

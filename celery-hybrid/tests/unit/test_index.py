"""What is remembered of the archive: the same outcomes as records.outcome, within a bound."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc

import pytest

from celery_hybrid.archive import index as module
from celery_hybrid.archive.index import Block, DecidingOffsets, Index, KnownOutcome, PartitionIndex, place
from celery_hybrid.rabbitmq.records import FORGET, GROUP, RESULT, Record, outcome

LIMIT = 64 * 1024


def key(number):
    return (RESULT, f"id-{number}")


def result(number, status="SUCCESS", offset=0, size=100):
    return Record(f"id-{number}", RESULT, status=status, body=b"x" * size, timestamp=1000, offset=offset)


def places_of(records, begin):
    places = Block(begin, len(records))
    for offset, record in enumerate(records, begin):
        places.put(offset, place(record.kind, record.subject, record.status, record.id))
    return places


def filled(*records, limit=LIMIT, begin=0):
    index = Index(limit, 2)
    index.extend(0, places_of(records, begin))
    return index


def test_absent_is_known():
    assert filled(result(1)).find(key(2), 0) == KnownOutcome(None)
    assert Index(LIMIT, 1).find(key(1), 0) == KnownOutcome(None)


def test_partitions_are_apart():
    assert filled(result(1)).find(key(1), 1) == KnownOutcome(None)


def test_a_record_is_found_at_its_offset():
    index = filled(*(result(number) for number in range(500)), begin=700)
    assert index.find(key(123), 0) == DecidingOffsets((823,))
    kept = result(123, offset=823)
    assert index.find(key(123), 0, {823: kept}) == KnownOutcome(kept)
    assert index.find(key(123), 0) == KnownOutcome(kept)


def test_a_task_and_a_group_may_have_the_same_id():
    index = filled(Record("x", GROUP, subject=GROUP), Record("x", RESULT, status="SUCCESS"))
    assert index.find((GROUP, "x"), 0) == DecidingOffsets((0,))
    assert index.find((RESULT, "x"), 0) == DecidingOffsets((1,))
    index.extend(0, places_of([Record.tombstone("x", GROUP)], 2))
    assert index.find((GROUP, "x"), 0) == DecidingOffsets((0, 2))
    assert index.find((RESULT, "x"), 0) == DecidingOffsets((1,))


def test_message_that_is_not_a_record_is_not_found():
    assert place("seed", "seed", "", "") == place("other", "other", "", "id-1") == 0


def history(random_, count):
    """Return records of few ids, in all states, of several runs."""
    made = []
    for offset in range(count):
        number = random_.randrange(4)
        choice = random_.randrange(10)
        if choice == 0:
            made.append(Record(f"id-{number}", FORGET, subject=RESULT, timestamp=1000, offset=offset))
        else:
            status = "SUCCESS" if choice < 3 else random_.choice(["STARTED", "FAILURE", "PROGRESS"])
            run = random_.choice([0, 1, 2, 3])
            made.append(dataclasses.replace(result(number, status, offset), run=run, retries=min(run, 1) - 1))
    return made


def folded(records, wanted):
    held = None
    for record in records:
        if record.key == wanted:
            held = outcome(held, record)
    return held


def place_of(record):
    return None if record is None else (record.offset, record.kind, record.status if record.kind == RESULT else "")


def looked_up(index, wanted, records):
    """Return what holds for a key, reading the records that the index names."""
    found = index.find(wanted, 0)
    if isinstance(found, DecidingOffsets):
        found = index.find(wanted, 0, {offset: records[offset] for offset in found.offsets})
    return place_of(found.record)


@pytest.mark.parametrize("seed", range(30))
def test_outcomes_are_those_of_the_records(seed):
    """Read in pieces, with and without kept outcomes."""
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    records = history(random_, 60)
    index = Index(LIMIT, 1)
    done = 0
    while done < len(records):
        piece = records[done : done + random_.randint(1, 9)]
        index.extend(0, places_of(piece, done))
        done += len(piece)
        for number in random_.sample(range(4), 2):
            expected = folded(records[:done], key(number))
            assert looked_up(index, key(number), records) == place_of(expected)
            if random_.random() < 0.2:
                index._drop(key(number))


@pytest.mark.parametrize("seed", range(30))
def test_outcomes_after_the_oldest_have_expired(seed):
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    records = history(random_, 60)
    index = Index(LIMIT, 1)
    index.extend(0, places_of(records, 0))
    horizon = 0
    while horizon < len(records):
        for number in range(4):
            assert looked_up(index, key(number), records) == place_of(folded(records[horizon:], key(number)))
        horizon += random_.randint(1, 15)
        index.expire(0, horizon)


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_after_the_oldest_were_forgotten(seed):
    """Either right, or not known; and right from then on when all was read again."""
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    records = [each for each in history(random_, 60) if each.kind != FORGET]
    records = [dataclasses.replace(each, offset=offset) for offset, each in enumerate(records)]
    index = Index(LIMIT, 1)
    index.extend(0, places_of(records[:30], 0))
    index._partitions[0].cut(random_.randint(1, 29))
    index._partitions[0].truncated = True
    for number in range(4):
        if index.find(key(number), 0) is None:
            index.fold(key(number), folded(records[:30], key(number)), 0, 30, 0)
    for end in range(31, len(records)):
        index.extend(0, places_of(records[end - 1 : end], end - 1))
        for number in range(4):
            assert looked_up(index, key(number), records) == place_of(folded(records[:end], key(number)))


def test_what_was_forgotten_is_not_taken_for_absent():
    index = Index(LIMIT, 2)
    for begin in range(0, 20_000, 500):
        index.extend(0, places_of([result(number) for number in range(begin, begin + 500)], begin))
    assert index.find(key(0), 0) is None
    # There may have been an earlier SUCCESS.
    assert index.find(key(19_999), 0) is None
    assert index.find(key("new"), 0) is None
    assert index.find(key("new"), 1) == KnownOutcome(None)
    # A tombstone hides whatever was forgotten.
    index.extend(0, places_of([Record.tombstone("id-0", RESULT)], 20_000))
    assert index.find(key(0), 0) == DecidingOffsets((20_000,))
    # It may also hide what comes behind it, of a run that was forgotten.
    index.extend(0, places_of([result(0)], 20_001))
    assert index.find(key(0), 0) is None


def test_a_collision_is_not_taken_for_the_record(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda _: 0x1234567800, raising=False)
    index = filled(result(1), result(2), limit=LIMIT)
    assert index.find(key(2), 0) == DecidingOffsets((0,))
    read = {0: result(1, offset=0)}
    assert index.find(key(2), 0, read) == DecidingOffsets((1,))
    read[1] = result(2, offset=1)
    assert index.find(key(2), 0, read) == KnownOutcome(read[1])
    assert index.find(key(3), 0, read) == KnownOutcome(None)


def test_hashes_are_found_at_whole_places_only(monkeypatch):
    """Seven bytes may also match across two places."""
    monkeypatch.setattr(module, "hash", lambda key: key, raising=False)
    positions = PartitionIndex()
    places = Block(0, 2)
    places.put(0, 0x2222222222222201)
    places.put(1, 0x2222222222222222)
    positions.extend(places)
    assert list(positions.of(0x2222222222222200, 0)) == [(1, 0), (0x22, 1)]


def test_expired_records_are_forgotten_without_doubt():
    index = Index(LIMIT, 1)
    for begin in range(0, 6000, 1000):
        index.extend(0, places_of([result(number) for number in range(begin, begin + 1000)], begin))
    index.extend(0, places_of([result("late")], 6000))
    index.fold(key(3), result(3, offset=3), 3, 6001, 0)
    before = index.size
    index.expire(0, 6000)
    assert index.size < before / 2
    assert index.find(key(1), 0) == index.find(key(3), 0) == KnownOutcome(None)
    assert index.find(key("late"), 0) == DecidingOffsets((6000,))


def test_an_expired_success_does_not_hide_what_came_after_it():
    records = [result(1, offset=0), result(1, "FAILURE", offset=1)]
    index = filled(*records)
    assert looked_up(index, key(1), records) == place_of(records[0])
    index.expire(0, 1)
    assert looked_up(index, key(1), records) == place_of(records[1])


def test_a_new_stream_begins_empty():
    index = filled(result(1), begin=50)
    index.fold(key(7), result(7), 50, 51, 0)
    index.extend(1, places_of([result(1)], 50))
    index.find(key(1), 1, {50: result(1, offset=50)})
    index.restart(0)
    assert index.find(key(1), 0) == index.find(key(7), 0) == KnownOutcome(None)
    assert isinstance(index.find(key(1), 1), KnownOutcome)
    assert len(index) == 1
    index.extend(0, places_of([result(1)], 0))
    assert index.find(key(1), 0) == DecidingOffsets((0,))


def test_least_recently_used_goes_first():
    records = [result(number, offset=number) for number in range(200)]
    index = filled(*records)
    for number in range(200):
        index.find(key(number), 0, {number: records[number]})
        index.find(key(0), 0)
    assert isinstance(index.find(key(0), 0), KnownOutcome)
    assert index.find(key(1), 0) == DecidingOffsets((1,))


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
            index.extend(begin // 1000 % 4, Block(begin // 4000 * 1000, 1000))
            for offset in range(begin, begin + 20):
                record = Record(f"{offset:036}", RESULT, status="SUCCESS"[:7], body=bytes(size), offset=offset)
                index.fold(record.key, record, offset, offset + 1, 0)
            assert index.size <= limit
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= index.size <= limit
    assert len(index) > 100

"""What is counted of a chord."""

from __future__ import annotations

import json

import pytest

from celery_hybrid.rabbitmq.records import CHORD_GROWTH, CHORD_PART, CHORD_SHAPE, CHORD_SIZE, Record
from celery_hybrid.results.chords import Chord
from celery_hybrid.results.content import Meta


def meta(record: Record) -> Meta:
    return dict(json.loads(record.body))


def part(name: str, timestamp: int = 1) -> Record:
    return Record(name, CHORD_PART, group="g", timestamp=timestamp)


def size(number: int) -> Record:
    return Record("g", CHORD_SIZE, group="g", body=json.dumps({"result": number}).encode())


def growth(name: str) -> Record:
    return Record(name, CHORD_GROWTH, group="g")


@pytest.mark.parametrize(
    ("records", "complete"),
    [
        ([part("a"), part("b")], False),
        ([size(2)], False),
        ([size(2), part("a")], False),
        ([size(2), part("a"), part("b")], True),
        ([part("a"), part("b"), size(2)], True),
        ([size(2), part("a"), part("a")], False),
        ([size(2), growth("c"), part("a"), part("b")], False),
        ([size(2), growth("c"), part("a"), part("b"), part("c")], True),
    ],
)
def test_complete(records: list[Record], complete: bool) -> None:
    chord = Chord()
    for record in records:
        chord.add(record, meta)
    assert chord.complete is complete


def test_the_first_end_of_a_task_counts() -> None:
    chord = Chord()
    chord.add(part("a", 1), meta)
    chord.add(part("a", 9), meta)
    assert chord.parts["a"].timestamp == 1
    assert chord.newest == 9


def test_the_shape_of_nested_groups_is_kept() -> None:
    chord = Chord()
    chord.add(Record("g", CHORD_SHAPE, group="g", body=b'{"result": [["g", null], []]}'), meta)
    assert chord.shape == [["g", None], []]
    assert not chord.complete

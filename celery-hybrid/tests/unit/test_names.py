"""The verifier shares no code with the backend that it judges, so what both must know is compared here."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from celery_hybrid import names
from celery_hybrid.errors import IdError
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.verify import canary, results


def test_verifier_and_backend_mean_the_same_objects() -> None:
    assert results.EXCHANGE == names.RESULTS_EXCHANGE
    assert results.STREAM.format(7) == names.archive_stream(7)
    assert (results.DLX, results.DEAD_LETTERS) == (names.DEAD_LETTER_EXCHANGE, names.DEAD_LETTER_QUEUE)
    assert Options().partitions == results.DEFAULT_PARTITIONS


def test_verifier_and_backend_look_into_the_same_stream() -> None:
    for _ in range(20):
        one = canary.QueueCanary("celery", 16)
        assert one.stream == names.archive_stream(names.partition_of(one.id, 16))


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


def test_ids_are_text_or_uuids() -> None:
    one = uuid.uuid4()
    assert names.id_of(one) == str(one)
    assert names.id_of("ü \0") == "ü \0"
    text = names.id_of(Text("plain"))
    assert (text, type(text)) == ("plain", str)


@pytest.mark.parametrize("value", [5, None, b"bytes", 1.5, ["id"], "\ud800"])
def test_other_ids_are_refused_and_named(value: Any) -> None:
    with pytest.raises(IdError, match=r"^The id .*of a task or group"):
        names.id_of(value)


@pytest.mark.parametrize(
    ("record_id", "short"),
    [("a", True), ("a" * 200, True), ("ü" * 100, True), ("a" * 201, False), ("ü" * 101, False), ("\ud800", False)],
)
def test_a_long_id_travels_as_a_hash(record_id: str, short: bool) -> None:
    found = names.short_id(record_id)
    assert (found == record_id) == short
    assert len(found.encode()) <= 200

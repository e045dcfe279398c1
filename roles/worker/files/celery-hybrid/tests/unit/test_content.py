from __future__ import annotations

import logging

import pytest

from celery_hybrid.content import Codec, Refusals
from celery_hybrid.errors import RecordRefusedError
from celery_hybrid.records import RESULT, Record

JSON = {"application/json"}
META = {"status": "SUCCESS", "result": {"a": [1, None, "ü"]}, "task_id": "id"}


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_round_trip(serializer, compression):
    accept = {"application/json", "application/x-python-serialize"}
    record = Codec(serializer, compression, accept).encode("id", RESULT, META, "SUCCESS")
    # Any reader can undo a compression, whatever it is configured with.
    assert Codec("json", None, accept).decode(Record.from_message(record.to_message())) == META
    assert bool(record.compression) == bool(compression)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"content_type": "application/x-python-serialize"}, "'application/x-python-serialize' is not in"),
        ({"content_type": ""}, "its content type '' is not in"),
        ({"body": b"{"}, "cannot be decoded"),
        ({"body": b"\xff\xfe"}, "cannot be decoded"),
        ({"body": b"[]"}, "not what Celery stores"),
        ({"body": b'{"result": 1}'}, "not what Celery stores"),
        ({"body": b'{"status": "SUCCESS"}'}, "not what Celery stores"),
        ({"body": b'{"status": "FAILURE", "result": 1}'}, "different states"),
        ({"compression": "application/x-gzip"}, "cannot be decoded"),
        ({"compression": "no/such"}, "cannot be decoded"),
    ],
)
def test_refused(change, reason):
    good = {"content_type": "application/json", "content_encoding": "utf-8", "body": b'{"status":"SUCCESS","result":1}'}
    codec = Codec("json", None, JSON)
    assert codec.decode(Record("id", RESULT, status="SUCCESS", **good))["result"] == 1
    with pytest.raises(RecordRefusedError) as caught:
        codec.decode(Record("id", RESULT, status="SUCCESS", **{**good, **change}))
    assert reason in str(caught.value)


def test_a_refusal_is_counted_and_said_once(caplog):
    refusals = Refusals()
    record = Record("the-id", RESULT, body=b"secret content", content_type="x/y")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            refusals.refuse(record, RecordRefusedError("of a reason"))
    assert refusals.counts == {"x/y": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "The stored result of task the-id is refused and treated as absent: of a reason."
    ]


def test_refusals_do_not_grow():
    refusals = Refusals()
    for number in range(3 * Refusals.REMEMBERED):
        refusals.refuse(Record(f"id-{number}", RESULT), RecordRefusedError("x"))
    assert len(refusals._seen) == Refusals.REMEMBERED

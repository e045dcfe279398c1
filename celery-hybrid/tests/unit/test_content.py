from __future__ import annotations

import logging

import pytest

from celery_hybrid.errors import RecordRefusedError, ResultStoreUnreachableError
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.results.content import Codec, Refusals

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


def test_a_refusal_is_counted_said_once_and_kept_as_a_dead_letter(caplog):
    letters = []
    refusals = Refusals(lambda message, key: letters.append((message, key)))
    record = Record("the-id", RESULT, status="SUCCESS", body=b"secret content", content_type="x/y", timestamp=7)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            refusals.refuse(record, RecordRefusedError("of a reason"))
    assert refusals.counts == {"x/y": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "The stored result of task the-id is refused: of a reason."
    ]
    ((message, key),) = letters
    assert key == "result.refused"
    assert (message.body, message.properties["content_type"]) == (b"secret content", "x/y")
    assert message.properties["correlation_id"] == "the-id"
    headers = message.properties["application_headers"]
    assert (headers["reason"], headers["status"], headers["stored_at"]) == ("of a reason", "SUCCESS", 7)


def test_a_refusal_without_a_dead_letter_is_said(caplog):
    def away(message, key):
        raise ResultStoreUnreachableError("RabbitMQ is away.")

    Refusals(away).refuse(Record("id", RESULT), RecordRefusedError("x"))
    assert caplog.messages[-1] == "Could not dead-letter it: RabbitMQ is away."


def test_refusals_do_not_grow():
    refusals = Refusals(lambda message, key: None)
    for number in range(3 * Refusals.REMEMBERED):
        refusals.refuse(Record(f"id-{number}", RESULT), RecordRefusedError("x"))
    assert len(refusals._seen) == Refusals.REMEMBERED

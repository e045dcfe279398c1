from __future__ import annotations

import datetime

import amqp
import pytest

from celery_hybrid.names import partition_of
from celery_hybrid.rabbitmq.records import CHORD_PART, GROUP, RESULT, SEED, Record, outcome


def result(status, body=b"{}", **fields):
    return Record("id", RESULT, status=status, body=body, **fields)


def test_partition_is_crc32():
    # Fixed for ever: other versions and other languages must find the same stream.
    assert partition_of("123456789", 1 << 32) == 0xCBF43926
    assert {partition_of(f"id-{number}", 16) for number in range(500)} == set(range(16))


@pytest.mark.parametrize(
    "record",
    [
        Record("id", RESULT, status="SUCCESS", body=b"\x00\xff", content_type="a/b", content_encoding="binary"),
        Record("id", RESULT, status="RETRY", body=b"{}", compression="application/x-gzip"),
        Record("id", GROUP, subject=GROUP, body=b"{}"),
        Record.tombstone("id", RESULT),
        Record.tombstone("id", GROUP),
        Record("", SEED, subject=SEED),
    ],
    ids=lambda record: f"{record.kind}-{record.subject}",
)
def test_round_trip(record):
    assert Record.from_message(record.to_message("address")) == record


def test_message():
    message = result("SUCCESS").to_message("address")
    properties = message.properties
    # The archive is a stream; RabbitMQ need not write the copy in the reply queue to the disk.
    assert properties["delivery_mode"] == 1
    assert properties["correlation_id"] == "id"
    assert properties["type"] == "result"
    assert properties["application_headers"] == {
        "x-stream-filter-value": "id",
        "status": "SUCCESS",
        "BCC": ["celery.reply.address"],
    }
    assert "BCC" not in result("SUCCESS").to_message().properties["application_headers"]


def test_reading_odd_messages_never_fails():
    odd = amqp.Message(
        "text", correlation_id=None, timestamp=None, application_headers={"status": 1, "x-stream-offset": None}
    )
    assert Record.from_message(odd) == Record(
        "", "", subject="", body=b"text", content_type="", content_encoding="utf-8", timestamp=0
    )
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert Record.from_message(amqp.Message("", timestamp=when)).timestamp == 1767225600


STARTED, FAILURE, SUCCESS, OTHER = result("STARTED"), result("FAILURE"), result("SUCCESS"), result("SUCCESS", b"[2]")
TOMBSTONE = Record.tombstone("id", RESULT)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([STARTED], STARTED),
        ([STARTED, SUCCESS], SUCCESS),
        ([SUCCESS, STARTED], SUCCESS),
        ([SUCCESS, OTHER], SUCCESS),
        ([SUCCESS, FAILURE], SUCCESS),
        ([FAILURE, SUCCESS], SUCCESS),
        ([FAILURE, STARTED], STARTED),
        ([SUCCESS, TOMBSTONE], TOMBSTONE),
        ([SUCCESS, TOMBSTONE, STARTED], STARTED),
        ([SUCCESS, TOMBSTONE, OTHER], OTHER),
    ],
)
def test_outcome(records, expected):
    for repeated in (1, 2):
        kept = None
        for record in records:
            for _ in range(repeated):
                kept = outcome(kept, record)
        assert kept is expected


def test_outcome_does_not_change_when_the_end_is_read_twice():
    records = [STARTED, SUCCESS, TOMBSTONE, FAILURE, OTHER, STARTED]
    kept = None
    for record in records:
        kept = outcome(kept, record)
    for first in range(len(records)):
        again = kept
        for record in records[first:]:
            again = outcome(again, record)
        assert again is kept


def test_expired():
    record = result("SUCCESS", timestamp=1000)
    assert not record.expired(None, 1e12)
    assert not record.expired(0, 1e12)
    assert not record.expired(60, 1060)
    assert record.expired(60, 1061)


def test_parts_of_chords_survive_in_their_queue():
    assert Record("id", CHORD_PART, group="g").to_message().properties["delivery_mode"] == 2


def test_the_journal_gets_a_copy_of_what_goes_to_a_stream():
    def copies(record, *arguments):
        return record.to_message(*arguments).properties["application_headers"].get("BCC")

    assert copies(Record("id", RESULT), None, True) == ["celery.journal"]
    assert copies(Record("id", RESULT), "client", True) == ["celery.reply.client", "celery.journal"]
    assert copies(Record("id", RESULT), "client", False) == ["celery.reply.client"]
    assert copies(Record("id", CHORD_PART, group="g"), None, True) is None

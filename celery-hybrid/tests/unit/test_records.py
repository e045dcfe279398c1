from __future__ import annotations

import datetime
import functools
import itertools
import random

import amqp
import pytest

from celery_hybrid.names import partition_of
from celery_hybrid.rabbitmq.records import CHORD_PART, FORGET, GROUP, RESULT, SEED, Record, outcome, superseded


def result(status, body=b"{}", **fields):
    return Record("id", RESULT, status=status, body=body, **fields)


def test_partition_is_crc32():
    # Fixed: other versions and other languages must find the same stream.
    assert partition_of("123456789", 1 << 32) == 0xCBF43926
    assert {partition_of(f"id-{number}", 16) for number in range(500)} == set(range(16))


@pytest.mark.parametrize(
    "record",
    [
        Record("id", RESULT, status="SUCCESS", body=b"\x00\xff", content_type="a/b", content_encoding="binary"),
        Record("id", RESULT, status="RETRY", body=b"{}", compression="application/x-gzip"),
        Record("id", RESULT, status="RETRY", body=b"{}", run=1_796_000_000_000_000, retries=3),
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
        ([STARTED, FAILURE], FAILURE),
        ([FAILURE, STARTED], FAILURE),
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


def of_run(run, status, retries=0, body=b"{}"):
    return result(status, body, run=run, retries=retries)


@pytest.mark.parametrize(
    ("records", "status", "run"),
    [
        # What an older run writes late changes nothing, a SUCCESS excepted.
        ([of_run(1, "STARTED"), of_run(2, "STARTED"), of_run(1, "RETRY")], "STARTED", 2),
        ([of_run(2, "FAILURE"), of_run(1, "RETRY")], "FAILURE", 2),
        ([of_run(2, "STARTED"), of_run(1, "FAILURE")], "STARTED", 2),
        ([of_run(2, "FAILURE"), of_run(1, "SUCCESS")], "SUCCESS", 1),
        ([of_run(2, "SUCCESS"), of_run(1, "SUCCESS")], "SUCCESS", 2),
        # A later run begins again.
        ([of_run(1, "FAILURE"), of_run(2, "STARTED")], "STARTED", 2),
        # Within a run the end counts.
        ([of_run(1, "FAILURE"), of_run(1, "STARTED")], "FAILURE", 1),
        ([of_run(1, "STARTED"), of_run(1, "PROGRESS")], "PROGRESS", 1),
        # Without numbers, retries tell the runs apart.
        ([of_run(0, "FAILURE", 1), of_run(0, "RETRY", 0)], "FAILURE", 0),
        ([of_run(0, "FAILURE", 0), of_run(0, "STARTED", 1)], "STARTED", 0),
        # A record that no task has written counts to the latest run before it.
        ([of_run(1, "STARTED"), result("FAILURE")], "FAILURE", 1),
        ([of_run(2, "STARTED"), result("FAILURE"), of_run(1, "STARTED")], "FAILURE", 2),
        ([result("FAILURE"), of_run(1, "STARTED")], "STARTED", 1),
        # A tombstone also hides what its runs deliver late, or twice.
        ([of_run(2, "SUCCESS"), TOMBSTONE, of_run(2, "SUCCESS")], None, 2),
        ([of_run(2, "FAILURE"), TOMBSTONE, of_run(2, "STARTED")], None, 2),
        ([of_run(2, "FAILURE"), TOMBSTONE, of_run(1, "SUCCESS")], None, 2),
        ([of_run(2, "FAILURE"), TOMBSTONE, TOMBSTONE, of_run(1, "SUCCESS")], None, 2),
        # But not what comes after: the rest of the run, a later one, or a record by hand.
        ([of_run(2, "STARTED"), TOMBSTONE, of_run(2, "SUCCESS")], "SUCCESS", 2),
        ([of_run(2, "SUCCESS"), TOMBSTONE, of_run(3, "STARTED")], "STARTED", 3),
        ([of_run(2, "SUCCESS"), TOMBSTONE, result("SUCCESS")], "SUCCESS", 2),
    ],
)
def test_outcome_of_runs(records, status, run):
    held = functools.reduce(outcome, records, None)
    assert (None if held.kind == FORGET else held.status, held.run) == (status, run)


@pytest.mark.parametrize("seed", range(50))
def test_the_outcome_of_known_runs_is_the_same_in_every_order_of_arrival(seed):
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    runs = random_.sample(range(1, 100), random_.randint(1, 4))
    ends = [random_.choice(["FAILURE", "RETRY", "REVOKED", None]) for _ in runs]
    if random_.random() < 0.5:
        ends[random_.randrange(len(runs))] = "SUCCESS"
    records = [of_run(run, "STARTED") for run in runs]
    records += [of_run(run, end) for run, end in zip(runs, ends, strict=True) if end not in (None, "RETRY")]
    orders = list(itertools.islice(itertools.permutations(records), 2000))
    held = {functools.reduce(outcome, order, None) for order in orders}
    assert len(held) == 1
    # A record that arrives twice changes nothing either.
    assert {functools.reduce(outcome, [*order, *order[::-1]], None) for order in orders[:100]} == held


@pytest.mark.parametrize("seed", range(50))
def test_the_outcome_may_be_carried_on_from_any_point(seed):
    random_ = random.Random(seed)  # noqa: S311 - the same each time
    choices = [of_run(run, status) for run in (0, 1, 2) for status in ("STARTED", "FAILURE", "SUCCESS")]
    records = random_.choices([*choices, TOMBSTONE, result("FAILURE")], k=12)
    for at in range(len(records)):
        kept = functools.reduce(outcome, records[:at], None)
        assert functools.reduce(outcome, records[at:], kept) == functools.reduce(outcome, records, None)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([of_run(1, "STARTED"), of_run(1, "SUCCESS")], {0}),
        ([of_run(1, "STARTED"), of_run(1, "RETRY"), of_run(2, "STARTED")], {0, 1}),
        ([of_run(1, "FAILURE"), of_run(2, "STARTED")], set()),
        ([of_run(2, "STARTED"), of_run(1, "STARTED")], set()),
        ([of_run(1, "STARTED"), Record("other", RESULT, status="SUCCESS")], set()),
        ([TOMBSTONE, of_run(1, "STARTED")], set()),
        ([Record("id", GROUP, subject=GROUP), Record("id", GROUP, subject=GROUP)], set()),
    ],
)
def test_superseded(records, expected):
    assert superseded(records) == expected


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


@pytest.mark.parametrize("task_id", ["x" * 201, "ü" * 4000])
def test_a_long_id_comes_back_whole(task_id):
    record = Record(task_id, RESULT, status="SUCCESS", body=b"{}")
    message = record.to_message("client")
    headers = message.properties["application_headers"]
    assert len(message.properties["correlation_id"]) < 100
    assert headers["x-stream-filter-value"] == message.properties["correlation_id"]
    assert Record.from_message(message).id == task_id


def test_parts_of_chords_survive_in_their_queue():
    assert Record("id", CHORD_PART, group="g").to_message().properties["delivery_mode"] == 2


def test_the_journal_gets_a_copy_of_what_goes_to_a_stream():
    def copies(record, *arguments):
        return record.to_message(*arguments).properties["application_headers"].get("BCC")

    assert copies(Record("id", RESULT), None, True) == ["celery.journal"]
    assert copies(Record("id", RESULT), "client", True) == ["celery.reply.client", "celery.journal"]
    assert copies(Record("id", RESULT), "client", False) == ["celery.reply.client"]
    assert copies(Record("id", CHORD_PART, group="g"), None, True) is None

"""What the journal adds to a stream after a power failure: what is missing, and nothing that is outdated."""

from __future__ import annotations

import pytest

from celery_hybrid.delivery.journal import Noted
from celery_hybrid.rabbitmq.records import RESULT, Record

STARTED, FAILURE, SUCCESS, AGAIN = (
    Record("id", RESULT, status=status, body=body, timestamp=7)
    for status, body in [("STARTED", b""), ("FAILURE", b""), ("SUCCESS", b""), ("SUCCESS", b"again")]
)
FORGET = Record("id", "forget", subject=RESULT, timestamp=8)
LATER_FORGET = Record("id", "forget", subject=RESULT, timestamp=9)
RUN_1, RUN_2 = (Record("id", RESULT, status="STARTED", run=run, retries=0, timestamp=run) for run in (1, 2))


@pytest.mark.parametrize(
    ("noted", "stored", "missing"),
    [
        # The stream has all, or lost all.
        ([SUCCESS], SUCCESS, []),
        ([STARTED, SUCCESS], SUCCESS, []),
        ([SUCCESS], None, [SUCCESS]),
        ([STARTED, SUCCESS], None, [SUCCESS]),
        # It lost the last ones.
        ([STARTED, SUCCESS], STARTED, [SUCCESS]),
        ([STARTED, FAILURE], STARTED, [FAILURE]),
        ([SUCCESS, FORGET], SUCCESS, [FORGET]),
        ([SUCCESS, FORGET, AGAIN], SUCCESS, [FORGET, AGAIN]),
        ([FORGET, SUCCESS], FORGET, [FORGET, SUCCESS]),
        # Something was stored or forgotten since.
        ([STARTED], FAILURE, []),
        ([FAILURE], SUCCESS, []),
        ([SUCCESS], LATER_FORGET, []),
        ([RUN_1], RUN_2, []),
        ([RUN_2], RUN_1, [RUN_2]),
        ([SUCCESS], AGAIN, [SUCCESS]),
        ([SUCCESS], FAILURE, [SUCCESS]),
    ],
)
def test_missing(noted, stored, missing):
    mine = Noted()
    for record in noted:
        mine.add(record)
    assert mine.missing(stored) == missing

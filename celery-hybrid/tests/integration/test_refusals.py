"""What a reader does not accept is kept for a person to look at."""

from __future__ import annotations

import time
import uuid

import amqp
import pytest
from celery import states

from celery_hybrid.errors import RecordRefusedError, ResultStoreError
from celery_hybrid.rabbitmq.records import RESULT, Record

pytestmark = pytest.mark.integration


def letters(shell):
    rows = shell.ctl(f"list_queues -p {shell.vhost} --no-table-headers name messages").splitlines()
    return dict(row.split("\t") for row in rows)["celery.dead_letters"]


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json"])
def test_a_refused_result_becomes_one_dead_letter(app, shell, content_type):
    before = int(letters(shell))
    task_id = str(uuid.uuid4())
    body = b"cos\nsystem\n(S'true'\ntR."
    app.backend.store.publisher.publish(
        Record(task_id, RESULT, status="SUCCESS", body=body, content_type=content_type, content_encoding="utf-8")
    )
    for _ in range(3):
        assert app.AsyncResult(task_id).state == states.FAILURE
    with pytest.raises(RecordRefusedError, match=f"result of task {task_id} is refused"):
        app.AsyncResult(task_id).get(timeout=10)
    end = time.monotonic() + 15
    while int(letters(shell)) == before:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert int(letters(shell)) == before + 1


def test_a_client_can_send_no_other_dead_letters(app):
    with pytest.raises(ResultStoreError, match=r"access to exchange 'celery\.dlx' .* refused"):
        app.backend.store.dead_letter(amqp.Message(b"{}"), "task.failed")

"""What is stored instead of a final record that RabbitMQ will never take."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from celery import states
from kombu.serialization import dumps, registry

from celery_hybrid.errors import RecordTooLargeError
from celery_hybrid.rabbitmq.records import Record


def failure_instead(record: Record, reason: str) -> Record | None:
    """Return the short final record that ends the wait for one that can never be stored, None if it ends none.

    Args:
        record: the one that cannot.
        reason: why, for the caller of ``get()``.
    """
    serializer = registry.type_to_name.get(record.content_type)
    if not record.ready or serializer is None:
        return None
    error = {
        "exc_type": RecordTooLargeError.__name__,
        "exc_message": [f"The task ended as {record.status}, which could not be stored: {reason}"],
        "exc_module": RecordTooLargeError.__module__,
    }
    meta = {
        "status": states.FAILURE,
        "result": error,
        "traceback": None,
        "children": [],
        "date_done": datetime.fromtimestamp(record.timestamp, UTC).isoformat(),
        "task_id": record.id,
    }
    content_type, content_encoding, body = dumps(meta, serializer=serializer)
    return replace(
        record,
        status=states.FAILURE,
        body=body.encode() if isinstance(body, str) else body,
        content_type=content_type,
        content_encoding=content_encoding,
        compression="",
    )

"""Between the meta that Celery knows and the bytes of a record; strict about what it takes in."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import amqp
from celery import states
from kombu.compression import compress, decompress
from kombu.serialization import dumps, loads

from celery_hybrid.errors import RecordRefusedError, ResultStoreError
from celery_hybrid.names import ID_HEADER, REFUSED_RESULT_KEY, short_id
from celery_hybrid.rabbitmq.records import GROUP, RESULT, Record

logger = logging.getLogger(__name__)

Meta = dict[str, Any]


class Codec:
    """Encodes with the configured serializer, decodes only content types that are accepted.

    Args:
        serializer: ``result_serializer``.
        compression: ``result_compression``, None for none.
        accept: content types that may be decoded.
    """

    def __init__(self, serializer: str, compression: str | None, accept: Collection[str] | None) -> None:
        self._serializer = serializer
        self._compression = compression
        self._accept = accept

    def encode(self, record_id: str, kind: str, meta: Meta, status: Any = "") -> Record:
        """Return the record of a meta; as with Celery's own backends its status may be anything."""
        content_type, content_encoding, body = dumps(meta, serializer=self._serializer)
        if isinstance(body, str):
            body = body.encode("utf-8")
        compression = ""
        if self._compression:
            body, compression = compress(body, self._compression)
        return Record(
            record_id,
            kind,
            subject=kind,
            status=_text(status),
            body=body,
            content_type=content_type,
            content_encoding=content_encoding,
            compression=compression,
        )

    def decode(self, record: Record) -> Meta:
        """Return the meta of a record.

        Raises:
            RecordRefusedError: its content type is not accepted, it cannot be decoded, or it is not what Celery stores.
        """
        if self._accept is not None and record.content_type not in self._accept:
            raise RecordRefusedError(f"its content type {record.content_type!r} is not in result_accept_content")
        try:
            body = decompress(record.body, record.compression) if record.compression else record.body
            meta = loads(body, record.content_type, record.content_encoding, accept=self._accept)
        except Exception as exc:
            raise RecordRefusedError(f"it cannot be decoded: {type(exc).__name__}") from exc
        if not isinstance(meta, dict) or "result" not in meta or (record.kind == RESULT and "status" not in meta):
            raise RecordRefusedError("it is not what Celery stores")
        if record.kind == RESULT and not _agree(meta["status"], record.status):
            raise RecordRefusedError("its header and its body have different states")
        return meta


def _text(status: Any) -> str:
    """Return a state as the text in the header of a record; ``update_state`` takes None, numbers and others, too."""
    text = str.__str__(status) if isinstance(status, str) else "" if status is None else str(status)
    return text.encode("utf-8", "backslashreplace").decode()


def _agree(inside: Any, header: str) -> bool:
    """Return whether the states in body and header agree. Those that decide something have to, to the letter."""
    return inside == header or not {_text(inside), header} & states.ALL_STATES


class Refusals:
    """Counts the records that were refused, and says each once.

    A record is looked at again and again while a caller waits for it, so it is remembered for a while.

    Args:
        dead_letter: publishes the copy that is kept for a person to look at.
    """

    REMEMBERED = 1000

    def __init__(self, dead_letter: Callable[[amqp.Message, str], None]) -> None:
        self._dead_letter = dead_letter
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str, int], None] = {}
        self.counts: Counter[str] = Counter()

    def refuse(self, record: Record, reason: RecordRefusedError) -> None:
        """Take notice of a refused record."""
        key = (*record.key, record.timestamp)
        with self._lock:
            if key in self._seen:
                return
            self._seen[key] = None
            if len(self._seen) > self.REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self.counts[record.content_type] += 1
        what = "group" if record.kind == GROUP else "task"
        logger.error("The stored result of %s %s is refused: %s.", what, record.id, reason)
        try:
            self._dead_letter(_letter(record, str(reason)), REFUSED_RESULT_KEY)
        except ResultStoreError as exc:
            logger.error("Could not dead-letter it: %s", exc)


def _letter(record: Record, reason: str) -> amqp.Message:
    """Return a refused record as it was, with the reason; the same from every reader, so that copies are seen."""
    return amqp.Message(
        record.body,
        type=record.kind,
        correlation_id=short_id(record.id),
        message_id=f"{REFUSED_RESULT_KEY}:{short_id(record.id)}:{record.timestamp}",
        content_type=record.content_type,
        content_encoding=record.content_encoding,
        delivery_mode=2,
        timestamp=int(time.time()),
        application_headers={
            ID_HEADER: record.id,
            "reason": reason,
            "host": socket.gethostname(),
            "status": record.status,
            "compression": record.compression,
            "stored_at": record.timestamp,
        },
    )

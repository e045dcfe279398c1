"""Dead letters: tasks that failed for good, each as the message it was, with the reason.

Redis has no dead-letter exchange, and Celery deletes what it cannot use. So a worker brings such a task to RabbitMQ
(or, while that is away, into an outbox of its own) before it acknowledges it. A letter keeps what is needed to send the
very task again: its body to the byte, its headers and properties.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from celery_hybrid.names import TASK_KEY_PREFIX, short_id
from celery_hybrid.rabbitmq.records import DEAD_LETTER, Record

logger = logging.getLogger(__name__)

#: Why a task is dead-lettered. ``task.REASON`` is the routing key of its letter.
FAILED, REJECTED, UNDECODABLE, REFUSED, UNKNOWN = "failed", "rejected", "undecodable", "refused", "unknown"
MALFORMED, ETA, LOST, TIME_LIMIT, UNROUTABLE = "malformed", "eta", "lost", "time_limit", "unroutable"
REVOKED = "revoked"
REASONS = {
    FAILED: "the task failed for good",
    REJECTED: "the task rejected its message",
    UNDECODABLE: "its body cannot be decoded",
    REFUSED: "its content type is not accepted",
    UNKNOWN: "no such task is registered",
    MALFORMED: "it is not a task message",
    ETA: "its ETA or expiry is not a valid time",
    LOST: "its process died, or ran out of memory",
    TIME_LIMIT: "it exceeded its hard time limit",
    UNROUTABLE: "no queue is bound for it",
    REVOKED: "it was revoked",
}
#: Headers of a task's message: how often it was lost and sent again, and how often it was replayed.
LOST_HEADER, REPLAYS_HEADER = "x-lost", "x-replays"

_LONGEST_TEXT = 20_000
_CONTENT_TYPE = "application/json"


@dataclass(frozen=True)
class DeadLetter:
    """A task that was dead-lettered.

    Attributes:
        id: the same for the same attempt of the same task, so that a letter that is there twice is recognised.
        reason: one of :data:`REASONS`.
        task_id, task: of the task; empty when its message does not say.
        queue: in Redis that it came from.
        exchange, routing_key: that it was published to.
        body: as it was in Redis, to the byte.
        content_type, content_encoding: of the body.
        headers, properties: of the message.
        exception, traceback: what happened, cut to some 20,000 characters.
        worker, host: where.
        received, failed: when, as ISO 8601 in UTC.
        retries: how often the task had retried.
        replays: how often it had been replayed.
    """

    id: str
    reason: str
    task_id: str = ""
    task: str = ""
    queue: str = ""
    exchange: str = ""
    routing_key: str = ""
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    content_encoding: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""
    traceback: str = ""
    worker: str = ""
    host: str = ""
    received: str = ""
    failed: str = ""
    retries: int = 0
    replays: int = 0

    @classmethod
    def of(
        cls, message: Any, reason: str, queue: str, worker: str, exc: BaseException | None = None, traceback: str = ""
    ) -> DeadLetter:
        """Return the letter of a message, whatever is wrong with it; this never fails.

        Args:
            message: kombu's, as it was received.
            reason: one of :data:`REASONS`.
            queue: where it came from.
            worker: name of this one.
            exc: why.
            traceback: of the task.
        """
        # The message as it was in Redis: kombu has taken it apart and decompressed it. Other transports have none.
        raw = getattr(message, "_raw", None)
        raw = raw if isinstance(raw, dict) else {}
        headers = _mapping(raw.get("headers", message.headers))
        properties = _mapping(raw.get("properties", message.properties))
        body = _raw_body(raw.get("body", message.body), properties.get("body_encoding"))
        info = _mapping(message.delivery_info)
        # Protocol 1 has them in the body, which may be anything.
        task_id, task = _text(headers.get("id") or properties.get("correlation_id")), _text(headers.get("task"))
        lost, replays = _number(headers.get(LOST_HEADER)), _number(headers.get(REPLAYS_HEADER))
        retries = _number(headers.get("retries"))
        attempt = f"{task_id or _digest(body, headers)}:{retries}.{lost}.{replays}"
        return cls(
            id=f"{attempt}:{reason}",
            reason=reason,
            task_id=task_id,
            task=task,
            queue=queue,
            exchange=_text(info.get("exchange")),
            routing_key=_text(info.get("routing_key")),
            body=body,
            content_type=_text(message.content_type),
            content_encoding=_text(message.content_encoding),
            headers=headers,
            properties=properties,
            exception=_short(described(exc)) if exc is not None else "",
            traceback=_short(traceback),
            worker=worker,
            host=socket.gethostname(),
            received=iso(getattr(message, "received_at", None)),
            failed=iso(time.time()),
            retries=retries,
            replays=replays,
        )

    @classmethod
    def of_bytes(cls, raw: bytes, queue: str, reason: str, worker: str) -> DeadLetter:
        """Return the letter of an element of a queue that is not a message."""
        now = iso(time.time())
        return cls(
            id=f"{_digest(raw, {})}:{UNDECODABLE}",
            reason=UNDECODABLE,
            queue=queue,
            body=raw,
            content_type="application/octet-stream",
            content_encoding="binary",
            exception=_short(reason),
            worker=worker,
            host=socket.gethostname(),
            received=now,
            failed=now,
        )

    def to_record(self) -> Record:
        """Return what travels to RabbitMQ: JSON that a person can read there."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        try:
            values |= {"body": self.body.decode(), "body_encoding": "utf-8"}
        except UnicodeDecodeError:
            values |= {"body": base64.b64encode(self.body).decode(), "body_encoding": "base64"}
        body = json.dumps(values, default=repr).encode()
        return Record(
            short_id(self.id),
            DEAD_LETTER,
            subject=f"{TASK_KEY_PREFIX}{self.reason}",
            body=body,
            content_type=_CONTENT_TYPE,
            content_encoding="utf-8",
        )

    @classmethod
    def from_body(cls, body: bytes | str) -> DeadLetter:
        """Return the letter in a body of RabbitMQ's.

        Raises:
            ValueError: it is none that a worker has written.
        """
        try:
            values = json.loads(body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(values, dict) or "reason" not in values or "id" not in values:
            raise ValueError("it is not a dead letter of a task")
        content = values.pop("body", "")
        encoding = values.pop("body_encoding", "utf-8")
        if not isinstance(content, str):
            raise ValueError("its body is not text")  # noqa: TRY004 - of a body that is not a letter
        kinds = {each.name: type(each.default) for each in dataclasses.fields(cls)}
        kinds |= {"id": str, "reason": str, "headers": dict, "properties": dict}
        known = {name: value for name, value in values.items() if name in kinds}
        for name, value in known.items():
            if type(value) is not kinds[name]:
                raise ValueError(f"its field {name} is not of type {kinds[name].__name__}")
        return cls(body=base64.b64decode(content) if encoding == "base64" else content.encode(), **known)

    @property
    def fingerprint(self) -> str:
        """The same for the same message only: an id can be used again, by a letter of another message."""
        tag = repr((self.id, self.task_id, self.queue, self.properties.get("delivery_tag")))
        return hashlib.sha256(self.body + tag.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def described(exc: BaseException) -> str:
    """Return an exception as one line; whatever it is made of."""
    try:
        text = str(exc)
    except Exception:
        text = "(it cannot be shown)"
    return f"{getattr(exc, 'exc_cls_name', None) or type(exc).__name__}: {text}"


def _raw_body(body: Any, encoding: Any) -> bytes:
    if isinstance(body, str):
        data = body.encode("utf-8", "surrogatepass")
        if encoding == "base64":
            try:
                return base64.b64decode(data)
            except (binascii.Error, ValueError):
                return data
        return data
    return bytes(body) if isinstance(body, (bytes, bytearray, memoryview)) else json.dumps(body, default=repr).encode()


def _digest(body: bytes, headers: Mapping[str, Any]) -> str:
    return hashlib.sha256(body + repr(sorted(headers.items(), key=repr)).encode()).hexdigest()[:32]


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT // 2]}\n…\n{text[-_LONGEST_TEXT // 2 :]}"


def iso(seconds: float | None) -> str:
    """Return a time as ISO 8601 in UTC; nothing for none."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else ""

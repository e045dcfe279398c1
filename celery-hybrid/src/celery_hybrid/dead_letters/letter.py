"""Dead letters: tasks that were put away, each as the message it was, with the reason.

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
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import dumps

from celery_hybrid.errors import HybridError, OptionError
from celery_hybrid.names import TASK_KEY_PREFIX, short_id
from celery_hybrid.rabbitmq.records import DEAD_LETTER, Record
from celery_hybrid.terminal import printable

logger = logging.getLogger(__name__)

SETTING = "worker_dead_letters"

#: Why a task is put away. ``task.REASON`` is the routing key of its letter.
FAILED, REJECTED, UNDECODABLE, REFUSED, UNKNOWN = "failed", "rejected", "undecodable", "refused", "unknown"
MALFORMED, ETA, LOST, TIME_LIMIT, UNROUTABLE = "malformed", "eta", "lost", "time_limit", "unroutable"
REVOKED = "revoked"
REASONS = {
    FAILED: "the task failed for good",
    REJECTED: "the task rejected its message",
    UNDECODABLE: "its body cannot be decoded",
    REFUSED: "its content type is not accepted",
    UNKNOWN: "no such task is registered",
    MALFORMED: "it is not a task's message",
    ETA: "its ETA or expiry is no time",
    LOST: "its process died, or ran out of memory",
    TIME_LIMIT: "it ran into its hard time limit",
    UNROUTABLE: "no queue takes it",
    REVOKED: "it was revoked",
}
# Celery has logged these as errors. One more would be a second event of one failure for programs such as Sentry.
_LOGGED = (FAILED, LOST, TIME_LIMIT)

#: Headers of a task's message: how often it was lost and sent again, and how often it was replayed.
LOST_HEADER, REPLAYS_HEADER = "x-lost", "x-replays"

_LONGEST_TEXT = 20_000
#: Seconds that a replay is remembered: longer than the letters are kept by default.
_REMEMBERED = 60 * 24 * 3600
_OF_THE_DELIVERY = frozenset({"delivery_tag", "delivery_info", "body_encoding", "expiration"})
_CONTENT_TYPE = "application/json"


@dataclass(frozen=True)
class Policy:
    """The setting ``worker_dead_letters``.

    Attributes:
        failed: put tasks away that failed for good. Messages that no task was made of always are.
        revoked: put revoked and expired tasks away.
        ignore: names of exceptions, with or without their module, that are expected: no letter. Their subclasses, and
            those in a task's ``throws``, are expected as well.
        lost_retries: how often a task is sent again whose process died, ran out of memory, or hit the hard time limit.
            Only tasks that are acknowledged late: others have been promised to run at most once.
        lost_retry_delay: seconds until it runs again, doubled each time.
    """

    failed: bool = True
    revoked: bool = False
    ignore: tuple[str, ...] = ()
    lost_retries: int = 3
    lost_retry_delay: float = 10.0

    @classmethod
    def from_mapping(cls, values: Any) -> Policy:
        """Check the setting.

        Raises:
            OptionError: an unknown name, or a value of the wrong type.
        """
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise OptionError(f"{SETTING} must be a dict of options, not {type(values).__name__}.")
        names = [each.name for each in dataclasses.fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise OptionError(f"{SETTING} has no option {name!r}. Valid names: {', '.join(sorted(names))}.")
            right, words = _KINDS[name]
            if not right(value):
                raise OptionError(f"{SETTING}[{name!r}] must be {words}, not {value!r}.")
        return cls(**{**values, "ignore": tuple(values.get("ignore", ()))})

    def expects(self, exc: BaseException) -> bool:
        """Tell whether an exception is one of those that are no reason for a letter."""
        if not self.ignore:
            return False
        names = {name for kind in type(exc).__mro__ for name in (kind.__name__, f"{kind.__module__}.{kind.__name__}")}
        # What cannot be pickled comes from the pool in a wrapper, with its name.
        wrapped = getattr(exc, "exc_cls_name", None)
        if isinstance(wrapped, str):
            names |= {wrapped, f"{getattr(exc, 'exc_module', '')}.{wrapped}"}
        return not names.isdisjoint(self.ignore)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)


_KINDS = {
    "failed": (_bool, "True or False"),
    "revoked": (_bool, "True or False"),
    "ignore": (_names, "a list of names of exceptions"),
    "lost_retries": (_count, "a whole number, 0 for none"),
    "lost_retry_delay": (_seconds, "a number of seconds"),
}


@dataclass(frozen=True)
class DeadLetter:
    """A task that was put away.

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
            received=_iso(getattr(message, "received_at", None)),
            failed=_iso(time.time()),
            retries=retries,
            replays=replays,
        )

    @classmethod
    def of_bytes(cls, raw: bytes, queue: str, reason: str, worker: str) -> DeadLetter:
        """Return the letter of an element of a queue that is no message at all."""
        now = _iso(time.time())
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


class DeadLetters:
    """Puts tasks away, for one worker.

    Args:
        app: whose result store takes the letters.
        worker: its name.

    Raises:
        OptionError: ``worker_dead_letters`` is wrong, or results are not in RabbitMQ.
    """

    def __init__(self, app: Any, worker: str) -> None:
        self.policy = Policy.from_mapping(app.conf.get(SETTING))
        self.worker = worker
        store = getattr(app.backend, "store", None)
        if not hasattr(store, "keep"):
            raise OptionError(
                "worker_consumer: celery_hybrid.worker.consumer brings dead letters to RabbitMQ, so it needs "
                "result_backend = 'amqp://…' of celery-hybrid. Set it, or leave worker_consumer alone."
            )
        self._app = app
        #: Letters by their reason, since the worker has started.
        self.counts: Counter[str] = Counter()

    def keep(self, letter: DeadLetter) -> bool:
        """Keep a letter durably; this never raises.

        Returns:
            False when neither RabbitMQ nor the outbox took it: then the task has to stay in Redis.
        """
        try:
            self._app.backend.store.keep(letter.to_record())
        except Exception as exc:
            logger.critical(
                "The %s has to stay in Redis, because it cannot be kept as a dead letter (%s): %s", *_of(letter), exc
            )
            return False
        self.counts[letter.reason] += 1
        logger.log(
            logging.WARNING if letter.reason in _LOGGED else logging.ERROR,
            "The %s is a dead letter now: %s. %s",
            *(_of(letter)[0], REASONS[letter.reason], printable(letter.exception)),
        )
        return True


class ReplayedError(HybridError):
    """A letter was replayed before.

    Args:
        at: when, as ISO 8601.
        copy: whether it was this very message, so that this letter is a copy which a crash has left.
    """

    def __init__(self, at: str, copy: bool) -> None:
        super().__init__(at)
        self.copy = copy


def send(
    channel: Any,
    letter: DeadLetter,
    queue: str,
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    marker: str | None = None,
    again: bool = False,
) -> None:
    """Put the message of a letter into a queue of Redis, as kombu would, and return when Redis has it.

    Args:
        channel: of kombu's Redis transport.
        letter: whose body goes there as it is.
        queue: which.
        headers: of the message.
        properties: of the message.
        marker: key in Redis that remembers, in the same transaction, that this was done.
        again: do it although it was done.

    Raises:
        ReplayedError: it was done before.
    """
    kept = {name: value for name, value in properties.items() if name not in _OF_THE_DELIVERY}
    message = channel.prepare_message(
        letter.body,
        content_type=letter.content_type,
        content_encoding=letter.content_encoding,
        headers=dict(headers),
        properties=kept,
    )
    channel._inplace_augment_message(message, "", queue)
    key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))

    def push(pipe: Any) -> None:
        # Commands that kombu prefixes with its global_keyprefix; GET is none of them.
        done, message_of = (_str(pipe.hget(marker, name)) for name in ("at", "message")) if marker else ("", "")
        # What was replayed by a version that did not note the message may be another one.
        if done and not again and message_of in ("", letter.fingerprint):
            raise ReplayedError(done, copy=bool(message_of))
        pipe.multi()
        pipe.lpush(key, dumps(message))
        if marker:
            pipe.hset(marker, "at", _iso(time.time()))
            pipe.hset(marker, "message", letter.fingerprint)
            pipe.pexpire(marker, _REMEMBERED * 1000)

    with channel.conn_or_acquire() as client:
        client.transaction(push, *([marker] if marker else []))


def described(exc: BaseException) -> str:
    """Return an exception as one line; whatever it is made of."""
    try:
        text = str(exc)
    except Exception:
        text = "(it cannot be shown)"
    return f"{getattr(exc, 'exc_cls_name', None) or type(exc).__name__}: {text}"


def _of(letter: DeadLetter) -> tuple[str, str]:
    name, task_id, queue = (printable(text) for text in (letter.task, letter.task_id, letter.queue))
    return f"task {name or '(no name)'}[{task_id or 'no id'}] of the queue {queue}", REASONS[letter.reason]


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


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT // 2]}\n…\n{text[-_LONGEST_TEXT // 2 :]}"


def _iso(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else ""

"""Chords as the broker counts them: the parts of a header and what is to be sent when all are there.

The process that ends a task counts it, in the Redis that its message came from. The one that completes the count makes
the messages of the body with its own application and routes, without sending them, and one script checks that the
chord is not done, sends them and marks it done (:mod:`celery_hybrid.broker.chord_scripts`). No process counts for
others, nothing is polled, and a count is lost only together with the messages that were acknowledged by it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery._state import _task_stack
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from celery_hybrid.broker.chord_scripts import ADOPT, EXCUSE, FINISH, GROW, LOAD, PART, STATE, SWEEP
from celery_hybrid.names import CHORD_PREFIX, CHORDS_OPEN, CHORDS_READY
from celery_hybrid.processes import must_not_wait, runs_tasks

logger = logging.getLogger(__name__)

GONE, DONE, BODY, BY_ID, MORE, COMPLETE = "gone", "done", "body", "by_id", "more", "complete"
UNCOUNTED, COUNTED, OPEN, OVER = "uncounted", "counted", "open", "over"

#: Bytes of a part that are kept in Redis; a larger result is read from the result store.
MOST_INLINE = 8 * 1024
#: Bytes of all parts of a chord that are kept in Redis.
MOST_OF_CHORD = 8 * 1024 * 1024
#: Seconds that a process may take to finish a chord before another one does.
LEASE = 30
#: Seconds that a chord is kept for without news when results are kept indefinitely.
_KEPT = 30 * 86400
#: Seconds after that in which its body is told.
_GRACE = 3600
_SWEPT_AT_ONCE = 100
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
# What Redis says when it writes nothing for now: starting, its disk is full, its replicas are away, another is primary.
_FOR_NOW = ("LOADING", "MISCONF", "NOREPLICAS", "BUSY ", "READONLY", "OOM", "MASTERDOWN", "TRYAGAIN")

Command = tuple[str, str, list[Any]]
"""Name of a command of Redis, its key as Redis knows it, its further arguments."""


@dataclass(frozen=True)
class Part:
    """The end of a task of a chord's header.

    Attributes:
        task_id: of the task.
        index: its place in the header, None for behind all others.
        status: the Celery state.
        body: its state and result, serialized; empty when the result store has them.
        content_type: of the body.
        content_encoding: of the body.
        compression: content type of the compression, empty for none.
        by_id: whether the result is in the result store only.
        called: the errbacks that were called for it, each as name of the task, arguments and keyword arguments.
    """

    task_id: str
    index: int | None
    status: str
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    content_encoding: str = ""
    compression: str = ""
    by_id: bool = False
    called: Sequence[Any] = ()

    def to_bytes(self) -> bytes:
        """Return what Redis keeps: a line of JSON, and the body."""
        head = [self.index, self.status, self.content_type, self.content_encoding, self.compression, self.by_id]
        return json.dumps([*head, self.called]).encode() + b"\n" + self.body

    @classmethod
    def from_bytes(cls, task_id: str, data: bytes) -> Part:
        """Return the part that Redis keeps."""
        head, _, body = data.partition(b"\n")
        index, status, content_type, content_encoding, compression, by_id, called = json.loads(head)
        return cls(task_id, index, status, body, content_type, content_encoding, compression, by_id, called)


@dataclass(frozen=True)
class Chord:
    """What is known of a chord that is to be finished.

    Attributes:
        state: :data:`COMPLETE`, :data:`OVER`, :data:`OPEN`, :data:`DONE` or :data:`GONE`.
        parts: the ends of its tasks by their ids; of the last three states there are none.
        size: number of tasks in the header, those included that were added; None when it is not known.
        shape: the header's results as a tuple, when some of them are groups.
        body: the serialized signature.
        origin: what the body inherits from the task that was counted last.
        tries: how often it was tried to finish it, this time included.
        age: seconds since the last part was counted.
        open_for: seconds since the first one was.
        added: ids of the tasks that were added to the header (``Task.add_to_chord``).
    """

    state: str
    parts: dict[str, Part] = field(default_factory=dict)
    size: int | None = None
    shape: Any = None
    body: bytes = b""
    origin: dict[str, Any] = field(default_factory=dict)
    tries: int = 1
    age: float = 0.0
    open_for: float = 0.0
    added: frozenset[str] = frozenset()


class Counter(Protocol):
    """Where chords are counted."""

    def begin(self, group_id: str, shape: Any) -> None:
        """Begin a chord, before its header is sent; what was counted of one with that id is forgotten."""

    def resize(self, group_id: str, size: int) -> None:
        """Note how many tasks a header has."""

    def grow(self, group_id: str, task_id: str) -> str:
        """Note that a header has a task more; return :data:`GONE`, :data:`DONE` or :data:`MORE`."""

    def count(self, group_id: str, part: Part, origin: dict[str, Any], body: bytes, bounded: bool) -> str:
        """Count a part, and return what :data:`~celery_hybrid.broker.chord_scripts.PART` does.

        Args:
            group_id: id of the header's group.
            part: the end of a task.
            origin: what the body inherits from it.
            body: the serialized signature of the body; empty until it is asked for.
            bounded: whether the part may be too large.
        """

    def load(self, group_id: str) -> Chord:
        """Return what there is to finish."""

    def excuse(self, group_id: str) -> None:
        """Take back that :meth:`load` counted an attempt to finish a chord: it is not to blame."""

    def capture(self) -> contextlib.AbstractContextManager[list[Command]]:
        """Collect what this thread sends to the broker instead of sending it."""

    def finish(self, group_id: str, commands: Sequence[Command]) -> bool:
        """Send what was collected, unless the chord is done; return whether it was sent."""


class Captured:
    """What one thread would have written to one Redis.

    Args:
        server: tells which one it is.
    """

    def __init__(self, server: str) -> None:
        self.commands: list[Command] = []
        self._server = server
        # An errback that is called here and now sends what it sends: it may wait for it.
        self._depth = len(_task_stack)

    def takes(self, channel: Any) -> bool:
        """Return whether this is about what a channel sends now."""
        return len(_task_stack) == self._depth and server_of(channel) == self._server

    def put(self, channel: Any, queue: str, message: Any) -> None:
        """Collect what puts a message into a queue."""
        key = f"{channel.global_keyprefix}{channel._q_for_pri(queue, channel._get_message_priority(message, False))}"
        self.commands.append(("LPUSH", key, [dumps(message)]))
        # Queues that expire, since kombu 5.7.
        milliseconds = getattr(channel, "_expires", {}).get(queue)
        if milliseconds:
            self.commands += [
                ("PEXPIRE", f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}", [milliseconds])
                for step in channel.priority_steps
            ]


_captured: ContextVar[Captured | None] = ContextVar("celery_hybrid_captured", default=None)


def server_of(channel: Any) -> str:
    """Return what tells the server, database and prefix of a channel from others."""
    return f"{channel.connection.client.as_uri(include_password=True)} {channel.global_keyprefix}"


@functools.cache
def _let_channels_be_captured() -> None:
    """Let all channels of kombu's Redis transport look whether they are captured, no matter what made them.

    The body of a chord is sent by code of the application: its own ``apply_async``, routers, signals. So it cannot be
    told which channel to use.
    """
    from kombu.transport import redis

    put = redis.Channel._put

    @functools.wraps(put)
    def captured_or_put(self: Any, queue: str, message: Any, **kwargs: Any) -> Any:
        captured = _captured.get()
        if captured is None or not captured.takes(self):
            return put(self, queue, message, **kwargs)
        return captured.put(self, queue, message)

    redis.Channel._put = captured_or_put


class RedisCounter:
    """Counts chords in the Redis that is the broker of an application.

    Args:
        app: the Celery application.
        expires: seconds that results are kept for: that long a chord is kept without news.
        brief: seconds to wait for Redis over a connection of its own; None takes a connection of the application's
            pool.
    """

    def __init__(self, app: Any, expires: float | None, brief: float | None = None) -> None:
        self._app = app
        self._kept = max(1, int(expires or _KEPT))
        self._brief = brief
        self._connection: Any = None
        self._scripts: dict[str, Any] = {}
        _let_channels_be_captured()

    # Writing

    def begin(self, group_id: str, shape: Any) -> None:
        """Begin a chord, before its header is sent; what was counted of one with that id is forgotten.

        By plain commands: applications that only send tasks have no right to scripts.
        """
        fields = ["shape", json.dumps(shape) if shape is not None else ""]
        self._write(group_id, [("DEL", []), ("HSET", fields), ("EXPIRE", [self._lifetime])])

    def resize(self, group_id: str, size: int) -> None:
        """Note how many tasks a header has; also of a group that is the end of a chain, and no chord of its own."""
        self._write(group_id, [("HSET", ["size", size]), ("EXPIRE", [self._lifetime])])

    def grow(self, group_id: str, task_id: str, adopt: bool = False) -> str:
        """Note that a header has a task more; return :data:`GONE`, :data:`DONE` or :data:`MORE`."""
        return self._answer(GROW, [CHORD_PREFIX + group_id], [task_id, self._lifetime, int(adopt)])

    def adopt(self, group_id: str, name: str, value: str | int) -> str:
        """Take over a field of a chord that an earlier version began; return DONE, MORE or COMPLETE."""
        return self._answer(ADOPT, [CHORD_PREFIX + group_id, CHORDS_READY], [group_id, name, value, self._lifetime])

    def count(
        self,
        group_id: str,
        part: Part,
        origin: dict[str, Any],
        body: bytes = b"",
        bounded: bool = True,
        adopt: bool = False,
    ) -> str:
        """Count a part; with *adopt* also of a chord that is not there."""
        arguments = [group_id, part.task_id, part.to_bytes(), dumps(origin), self._kept, _GRACE, LEASE]
        arguments += [uuid.uuid4().hex, MOST_OF_CHORD if bounded else "", int(adopt), body]
        return self._answer(PART, self._keys(group_id), arguments)

    def finish(self, group_id: str, commands: Sequence[Command]) -> bool:
        """Send what was collected, unless the chord is done; return whether it was sent."""
        keys = list(dict.fromkeys(key for _, key, _ in commands))
        places = {key: place for place, key in enumerate(keys, 4)}

        def finish(channel: Any, client: Any) -> Any:
            # Longer than a message of its header can come again.
            remembered = min(self._kept, max(3600, 2 * int(getattr(channel, "visibility_timeout", 3600))))
            arguments: list[Any] = [group_id, remembered]
            for name, key, more in commands:
                arguments += [name, places[key], len(more), *more]
            own = [channel.global_keyprefix + key for key in self._keys(group_id)]
            return self._script(FINISH, client)(keys=[*own, *keys], args=arguments)

        return bool(self._run(finish))

    def excuse(self, group_id: str) -> None:
        """Take back that :meth:`load` counted an attempt to finish a chord: it is not to blame."""
        self._call(EXCUSE, [CHORD_PREFIX + group_id], [])

    # Reading

    def state(self, group_id: str, task_id: str) -> tuple[str, str | None]:
        """Return GONE, DONE, UNCOUNTED, COUNTED or COMPLETE, and the Celery state that a task was counted with."""
        state, part = self._call(STATE, [CHORD_PREFIX + group_id], [task_id])
        return str(bytes_to_str(state)), Part.from_bytes(task_id, part).status if part else None

    def load(self, group_id: str) -> Chord:
        """Return what there is to finish."""
        state, tries, age, flat = self._call(LOAD, self._keys(group_id), [group_id])
        found = dict(zip((bytes_to_str(name) for name in flat[::2]), flat[1::2], strict=True))
        size = int(found["size"]) + int(found.get("growth", 0)) if "size" in found else None
        parts = {name[2:]: Part.from_bytes(name[2:], value) for name, value in found.items() if name.startswith("p:")}
        length = float(found["full"]) - float(found["since"]) if "full" in found and "since" in found else 0.0
        return Chord(
            bytes_to_str(state),
            parts,
            size,
            json.loads(found.get("shape") or b"null"),
            found.get("body", b""),
            json.loads(found.get("origin") or b"{}"),
            int(tries),
            float(age),
            float(age) + length,
            frozenset(name[2:] for name in found if name.startswith("g:")),
        )

    def abandoned(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the chords that no process is finishing, although they are complete or given up, with their origins.

        Each is returned to one caller.
        """

        def sweep(channel: Any, client: Any) -> Any:
            keys = [channel.global_keyprefix + key for key in (CHORDS_READY, CHORDS_OPEN)]
            prefix = channel.global_keyprefix + CHORD_PREFIX
            groups = self._script(SWEEP, client)(keys=keys, args=[LEASE, _SWEPT_AT_ONCE, prefix])
            names = [bytes_to_str(group) for group in groups]
            return [(name, json.loads(client.hget(prefix + name, "origin") or b"{}")) for name in names]

        return list(self._run(sweep))

    def unfinished(self, most: int = 20) -> dict[str, Any]:
        """Return how many chords are open, how many of them are complete, and the oldest.

        Chords that no task has ended of are not known.
        """

        def read(channel: Any, client: Any) -> Any:
            opened, ready = (channel.global_keyprefix + key for key in (CHORDS_OPEN, CHORDS_READY))
            # Complete ones need not be among those with the oldest news.
            listed = [*client.zrange(opened, 0, most - 1), *client.zrange(ready, 0, most - 1)]
            groups = list(dict.fromkeys(bytes_to_str(group) for group in listed))
            pipe = client.pipeline(transaction=False)
            pipe.time()
            pipe.zcard(opened)
            pipe.zcard(ready)
            for group in groups:
                key = channel.global_keyprefix + CHORD_PREFIX + group
                pipe.hmget(key, ["n", "size", "growth", "since", "full", "tries"])
            (seconds, _), count, complete, *rows = pipe.execute()
            return {
                "open": int(count),
                "complete": int(complete),
                "oldest": [_row(group, row, seconds) for group, row in zip(groups, rows, strict=True) if row[0]],
            }

        return dict(self._run(read))

    # Asking

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Command]]:
        """Collect what this thread sends to the broker instead of sending it."""
        with self._channel() as channel:
            captured = Captured(server_of(channel))
        token = _captured.set(captured)
        try:
            yield captured.commands
        finally:
            _captured.reset(token)

    @property
    def _lifetime(self) -> int:
        return self._kept + _GRACE

    @staticmethod
    def _keys(group_id: str) -> list[str]:
        return [CHORD_PREFIX + group_id, CHORDS_READY, CHORDS_OPEN]

    def _write(self, group_id: str, commands: list[tuple[str, list[Any]]]) -> None:
        captured = _captured.get()

        def write(channel: Any, client: Any) -> None:
            key = f"{channel.global_keyprefix}{CHORD_PREFIX}{group_id}"
            if captured is not None and captured.takes(channel):
                # A chord that is the body of another: it begins when that is done, and not before.
                captured.commands += [(name, key, arguments) for name, arguments in commands]
                return
            with client.pipeline(transaction=True) as pipe:
                for name, arguments in commands:
                    pipe.execute_command(name, key, *arguments)
                pipe.execute()

        self._run(write, patient=False)

    def _answer(self, script: str, keys: list[str], arguments: list[Any]) -> str:
        return str(bytes_to_str(self._call(script, keys, arguments)))

    def _call(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        def call(channel: Any, client: Any) -> Any:
            own = [channel.global_keyprefix + key for key in keys]
            return self._script(script, client)(keys=own, args=arguments)

        return self._run(call)

    def _script(self, script: str, client: Any) -> Callable[..., Any]:
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = client.register_script(script)
        return functools.partial(known, client=client)

    def _run(self, work: Callable[[Any, Any], Any], patient: bool = True) -> Any:
        """Do something with a channel and a client that does not prefix keys.

        In a task it is tried until Redis answers: without it the task could not be acknowledged either.

        Raises:
            kombu.exceptions.OperationalError: Redis is away, and this is not a task.
            redis.exceptions.ResponseError: Redis refuses it.
        """
        from kombu.exceptions import OperationalError
        from redis import Redis
        from redis.exceptions import ResponseError

        # kombu makes an OperationalError of what ends an attempt to connect.
        lost = (OperationalError, *self._app.connection_for_write().recoverable_connection_errors)
        pause = _FIRST_PAUSE
        waits = patient and self._brief is None and runs_tasks() and not must_not_wait()
        policy = self._app.conf.task_publish_retry_policy or {}
        left = 0 if self._brief is not None else int(policy.get("max_retries") or 0)
        while True:
            try:
                with self._channel() as channel:
                    return work(channel, Redis(connection_pool=channel.pool))
            except ResponseError as exc:
                if not str(exc).startswith(_FOR_NOW):
                    raise
                error: Exception = exc
            except lost as exc:
                if isinstance(exc, KeyError):
                    raise
                error = exc
            self._drop()
            if not waits and not left:
                raise OperationalError(str(error)) from error
            left -= 1
            logger.log(
                logging.WARNING if pause == _FIRST_PAUSE else logging.DEBUG,
                *("Redis does not answer about a chord; trying again: %r", error),
            )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        if self._brief is None:
            with self._app.producer_or_acquire() as producer:
                yield producer.channel
            return
        if self._connection is None:
            connection = self._app.connection_for_write()
            limits = {"socket_timeout": self._brief, "socket_connect_timeout": self._brief, "max_retries": 0}
            connection.transport_options = {**(connection.transport_options or {}), **limits}
            self._connection = connection
        yield self._connection.default_channel

    def send(self, task: Any, arguments: Sequence[Any], route: dict[str, Any]) -> None:
        """Send a task over the connection of this counter.

        Raises:
            kombu.exceptions.OperationalError: Redis is away.
        """

        def send(channel: Any, _client: Any) -> None:
            connection = channel.connection.client
            task.apply_async(tuple(arguments), connection=connection, retry=False, ignore_result=True, **route)

        self._run(send)

    def close(self) -> None:
        """End the connection of its own, if there is one."""
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.collect()


def _row(group: str, row: list[Any], now: float) -> dict[str, Any]:
    n, size, growth, since, full, tries = row
    return {
        "group": group,
        "ended": int(n),
        "size": int(size) + int(growth or 0) if size else None,
        "seconds": max(0, int(now - float(since or now))),
        "complete_seconds": max(0, int(now - float(full))) if full else None,
        "tries": int(tries or 0),
    }

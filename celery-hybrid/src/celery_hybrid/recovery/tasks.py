"""Tasks in Redis, for people: waiting and unacknowledged ones, purged into a file, put back, recovered.

A message that is purged is in its queue, then in a list of its own in Redis, and leaves that when it is on the disk.
Each step is one script, so a command that is killed at any point can be given again: nothing is lost, nothing is twice.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from celery_hybrid.broker.transport import Channel
from celery_hybrid.broker.unacknowledged import Unacknowledged, UnacknowledgedReader
from celery_hybrid.errors import HybridError, OptionError
from celery_hybrid.files import sync_folder_of

#: Hash in Redis: purges that have begun and not ended, by queue.
PURGES = "celery.purges"
#: Seconds that Redis remembers what was put back.
REMEMBERED = 60 * 24 * 3600
#: Seconds. What was taken, or claimed again, within them is on its way.
GRACE = 60.0

_BATCH = 500

_STAGE = """
-- Moves the oldest elements of a list to those that are being purged, each with the list's name before it.
-- KEYS: the list, what is being purged.  ARGV: name of the list, how many at most.  Returns how many.
local found = redis.call('RPOP', KEYS[1], ARGV[2])
if not found then return 0 end
for _, element in ipairs(found) do redis.call('LPUSH', KEYS[2], ARGV[1] .. '\\n' .. element) end
return #found
"""

_DROP = """
-- Removes the oldest of what is being purged, because they are on the disk. Returns 0 when another command has it.
-- KEYS: what is being purged, the purges.  ARGV: queue, its purge as it was, as it is now, how many.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('RPOP', KEYS[1], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return 1
"""

_RETURN = """
-- Puts elements back where they were, except those that were put back before. Returns how many.
-- KEYS: what was put back, the lists.  ARGV: when, milliseconds to remember it, 1 to do it again; then of each element
--       its number in the purge, the number of its list, and itself.
local count = 0
for place = 4, #ARGV, 3 do
    if redis.call('HSETNX', KEYS[1], ARGV[place], ARGV[1]) == 1 or ARGV[3] == '1' then
        redis.call('RPUSH', KEYS[1 + ARGV[place + 1]], ARGV[place + 2])
        count = count + 1
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return count
"""


class RecoveryError(HybridError):
    """What was asked for cannot be done; the message says why, and what to do."""


@dataclass(frozen=True)
class Purge:
    """A purge that has begun.

    Attributes:
        id: names it.
        host: where its file is.
        path: of its file.
        count: messages that are in the file and not in Redis any more.
        size: bytes of the file with these; what is behind is still in Redis.
    """

    id: str
    host: str
    path: str
    count: int = 0
    size: int = 0


@dataclass(frozen=True)
class Purged:
    """A message in a file.

    Attributes:
        purge: id of the purge.
        number: its place there, the oldest of the most urgent first.
        queue: where it was.
        list: the key in Redis, without a global prefix.
        element: as it was, to the byte.
    """

    purge: str
    number: int
    queue: str
    list: str
    element: bytes

    def line(self) -> str:
        """Return it as a line of JSON that a person can read, too."""
        headers = _headers(self.element)
        try:
            content = {"element": self.element.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            content = {"element": base64.b64encode(self.element).decode(), "encoding": "base64"}
        values = {"purge": self.purge, "number": self.number, "queue": self.queue, "list": self.list}
        return json.dumps({**values, "task": headers.get("task"), "id": headers.get("id"), **content}) + "\n"

    @classmethod
    def of(cls, line: str) -> Purged:
        """Return what is in a line.

        Raises:
            ValueError: it is none that :meth:`line` has made.
        """
        try:
            values = json.loads(line)
            element = values["element"]
            raw = base64.b64decode(element, validate=True) if values["encoding"] == "base64" else element.encode()
            found = cls(values["purge"], values["number"], values["queue"], values["list"], raw)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(str(exc)) from exc
        if not (isinstance(found.purge, str) and isinstance(found.list, str) and isinstance(found.number, int)):
            raise ValueError("purge, list or number is of the wrong type")  # noqa: TRY004
        return found


@dataclass(frozen=True)
class InHand:
    """A message that was taken and is not acknowledged.

    Attributes:
        tag: names it in ``unacked``.
        entry: what is there.
        taken: when it was last taken or claimed, in seconds since the epoch by Redis' clock.
        age: seconds since then.
        queue, task, task_id: of the message; empty when it does not say.
        overdue: for longer than the visibility timeout.
        held: a worker that answers has it.
    """

    tag: str
    entry: bytes
    taken: float
    age: float
    queue: str
    task: str
    task_id: str
    overdue: bool
    held: bool = False

    @property
    def state(self) -> str:
        """Say how it is, in words."""
        if self.held:
            return "a worker has it"
        if self.overdue:
            return "overdue"
        return "no worker that answers has it" if self.age > GRACE else "on its way"

    def stuck(self, gone: bool) -> bool:
        """Return whether to put it back.

        Args:
            gone: the workers that do not answer are dead.
        """
        return not self.held and (self.overdue or (gone and self.age > GRACE))


class TaskRecovery:
    """The tasks of an application in Redis, with the rights of its workers.

    Args:
        connection: kombu's, over this package's transport.

    Raises:
        OptionError: the broker is not Redis.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            raise OptionError("broker_url is not a Redis URL, so there is nothing to show.")
        self._channel = channel
        # Without kombu's prefixing, which knows some commands only.
        self._redis: Any = redis.Redis(connection_pool=channel.pool)
        self._stage, self._drop, self._return = map(self._redis.register_script, (_STAGE, _DROP, _RETURN))

    def _key(self, name: str) -> str:
        return str(self._channel.global_keyprefix + name)

    def waiting(self, queue: str) -> dict[str, int]:
        """Return how many messages each list of a queue has, the most urgent first."""
        return {name: int(self._redis.llen(self._key(name))) for name in self._channel._lists([queue])}

    def set_aside(self) -> dict[str, int]:
        """Return how many elements were set aside because they are not messages, or no queue takes them."""
        names = (self._channel.undecodable_key, self._channel.deadletter_queue)
        return {name: sum(self.waiting(name).values()) for name in names if name}

    # -- purging --------------------------------------------------------------------------------------------------

    def begun(self, queue: str) -> tuple[Purge, int] | None:
        """Return a purge of a queue that has not ended, and how many messages it has still in Redis."""
        found = self._redis.hget(self._key(PURGES), queue)
        if found is None:
            return None
        return Purge(**json.loads(found)), int(self._redis.llen(self._held(queue)))

    def purge(self, queue: str, path: Path, take_over: bool = False) -> int:
        """Move all messages that a queue has now into a file; go on with a purge into this file that was interrupted.

        Args:
            queue: which, with all its priorities.
            path: of the file, for its owner alone.
            take_over: go on with a purge into another file, which is lost.

        Returns:
            How many are in the file.

        Raises:
            RecoveryError: the file is there already, or another purge has begun.
            OSError: the file cannot be written.
        """
        path = path.resolve()
        with _opened(path) as file:
            purge, state = self._claim(queue, path, os.fstat(file).st_size, take_over)
            # Behind that is what was not removed from Redis.
            os.truncate(file, purge.size)
            for name, count in self.waiting(queue).items():
                self._take_aside(queue, name, count)
            while found := self._redis.lrange(self._held(queue), -_BATCH, -1):
                lines = []
                for number, held in enumerate(reversed(found), purge.count):
                    name, element = held.split(b"\n", 1)
                    lines.append(Purged(purge.id, number, queue, name.decode(), element).line().encode())
                _write(file, b"".join(lines), purge.size)
                purge = replace(purge, count=purge.count + len(lines), size=purge.size + sum(map(len, lines)))
                after = json.dumps(asdict(purge))
                self._remove(queue, state, after, len(lines))
                state = after
            self._redis.hdel(self._key(PURGES), queue)
            return purge.count

    def _held(self, queue: str) -> str:
        return self._key(f"celery.purging.{queue}")

    def _claim(self, queue: str, path: Path, size: int, take_over: bool) -> tuple[Purge, str]:
        host, known = socket.gethostname(), self.begun(queue)
        purge = known[0] if known else None
        if purge is not None and (purge.host, purge.path) != (host, str(path)):
            if not take_over:
                raise RecoveryError(
                    f"A purge of queue {queue} into {purge.path} on {purge.host} was interrupted. Repeat that command "
                    "on that host; or, if that file is lost, continue into another one with --take-over."
                )
            purge = None
        if purge is None and size:
            raise RecoveryError(f"{path} already exists, from another purge. Use a new name.")
        if purge is None:
            purge = Purge(uuid.uuid4().hex, host, str(path))
            state = json.dumps(asdict(purge))
            if known:
                self._redis.hset(self._key(PURGES), queue, state)
            elif not self._redis.hsetnx(self._key(PURGES), queue, state):
                raise RecoveryError(f"Another command has just begun to purge queue {queue}.")
            return purge, state
        if size < purge.size:
            raise RecoveryError(
                f"{path} is shorter than the purge has written, so it is not the file that it was. Bring that back; or "
                "go on into another file with --take-over."
            )
        return purge, json.dumps(asdict(purge))

    def _take_aside(self, queue: str, name: str, count: int) -> None:
        # As many as there are now; what comes meanwhile stays, or a busy queue would never end.
        while count > 0:
            keys = [self._key(name), self._held(queue)]
            moved = int(self._stage(keys=keys, args=[name, min(count, _BATCH)]))
            if not moved:
                return
            count -= moved

    def _remove(self, queue: str, before: str, after: str, count: int) -> None:
        if not self._drop(keys=[self._held(queue), self._key(PURGES)], args=[queue, before, after, count]):
            raise RecoveryError(f"Another command has taken over the purge of queue {queue} over.")

    # -- putting back ---------------------------------------------------------------------------------------------

    def put_back(self, entries: Iterable[Purged], again: bool = False) -> int:
        """Put messages back into their lists, as they were: before what has come since.

        Args:
            entries: of a file.
            again: also those that were put back before.

        Returns:
            How many are back; the others had been put back before.
        """
        count = 0
        # The next to be taken is the last that is put there.
        for purge, group in itertools.groupby(reversed(list(entries)), lambda entry: entry.purge):
            entries = list(group)
            for first in range(0, len(entries), _BATCH):
                batch = entries[first : first + _BATCH]
                lists = list(dict.fromkeys(entry.list for entry in batch))
                keys = [self._marker(purge), *map(self._key, lists)]
                args: list[Any] = [int(time.time()), REMEMBERED * 1000, int(again)]
                for entry in batch:
                    args += [entry.number, lists.index(entry.list) + 1, entry.element]
                count += int(self._return(keys=keys, args=args))
        return count

    def were_put_back(self, entries: Iterable[Purged]) -> int:
        """Return how many of these were put back before."""
        pipe = self._redis.pipeline(transaction=False)
        for entry in entries:
            pipe.hget(self._marker(entry.purge), str(entry.number))
        return sum(found is not None for found in pipe.execute())

    def _marker(self, purge: str) -> str:
        return self._key(f"celery.put-back.{purge}")

    # -- unacknowledged ------------------------------------------------------------------------------------------

    def in_hand(self) -> list[InHand]:
        """Return what was taken and is not acknowledged, the oldest first."""
        channel = self._channel
        seconds, micros = self._redis.time()
        now = seconds + micros / 1e6
        found = []
        for each in UnacknowledgedReader(channel, self._redis).read():
            if each.entry is None:
                # Acknowledged in between.
                continue
            queue, headers = _routed(each)
            task, task_id = str(headers.get("task") or ""), str(headers.get("id") or "")
            age = now - each.taken
            overdue = age > channel.visibility_timeout
            tag = bytes_to_str(each.name)
            found.append(InHand(tag, each.entry, each.taken, age, queue, task, task_id, overdue))
        return found

    def recover(self, messages: Iterable[InHand]) -> Iterator[tuple[InHand, bool]]:
        """Put messages back into their queues, to be taken next; tell of each whether it was still there.

        One that is acknowledged or claimed again meanwhile is left alone.
        """
        for message in messages:
            with self._channel.conn_or_acquire() as client:
                moved = self._channel._put_back(client, [(message.tag, repr(message.taken))])
            yield message, bool(moved)


def held_by_workers(app: Any, connection: Any, timeout: float) -> dict[str, set[str]]:
    """Return the ids of the tasks that each worker has, of all that answer within so many seconds."""
    nodes = sorted(app.control.inspect(connection=connection, timeout=timeout).ping() or {})
    held: dict[str, set[str]] = {node: set() for node in nodes}
    if nodes:
        # With named destinations Celery stops waiting when all have answered.
        inspect = app.control.inspect(destination=nodes, connection=connection, timeout=timeout)
        for command in (inspect.active, inspect.reserved, inspect.scheduled):
            for node, requests in (command() or {}).items():
                held.setdefault(node, set()).update(
                    str((request.get("request") or request).get("id")) for request in requests
                )
    return held


def read(path: Path) -> list[Purged]:
    """Return what a file holds.

    Raises:
        RecoveryError: a line is none of a purge.
    """
    found = []
    # What is behind the last end of a line was not removed from Redis.
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            found.append(Purged.of(line))
        except ValueError as exc:
            raise RecoveryError(f"{path}, line {number}, is not a message of a purge: {exc}") from exc
    return found


def _headers(element: bytes) -> Mapping[str, Any]:
    try:
        headers = loads(element.decode())["headers"]
    except Exception:
        return {}
    return headers if isinstance(headers, Mapping) else {}


def _routed(message: Unacknowledged) -> tuple[str, Mapping[str, Any]]:
    """Return routing key and headers; empty ones when they cannot be read."""
    try:
        payload, routing_key = message.unpacked()
        return routing_key, payload["headers"] if isinstance(payload["headers"], Mapping) else {}
    except Exception:
        return "", {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file for one process at a time."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecoveryError(f"Another command is writing to {path}.") from None
        sync_folder_of(path)
        yield file
    except BaseException:
        if not os.fstat(file).st_size:
            path.unlink()
        raise
    finally:
        os.close(file)


def _write(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
    os.fsync(file)

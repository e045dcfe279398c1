# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client processes of the chaos suite: one sends good and bad tasks, another one counts in the end.

    client send LOAD                    sends good tasks, and bad ones and chords among them, see :func:`send`
    client count FIRST LAST PATIENCE    waits until Redis has nothing left to do, and reads everything

Both print one line of JSON. What was sent is noted in ``sent`` (number, since when), ``sent-bad`` (number, reason,
kind) and ``sent-chord`` (number, state that it must end in, kind).
Environment: that of ``chaos_app``, ``CHAOS_LETTERS``, the URL of a user who may read
dead letters, and ``CHAOS_LOOK``, that of Redis with all rights.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import random
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp
import redis
from celery import chain, chord, group, states

from celery_hybrid.names import CHORDS_OPEN, CHORDS_READY
from tests.chaos.chaos_app import (
    QUEUE,
    SEED,
    SIDE,
    UNDELIVERABLE,
    app,
    body,
    closed,
    dies,
    eats,
    errback,
    fails,
    fails_later,
    hangs,
    id_of,
    part,
    quiet,
    rejects,
    server,
    work,
)
from tests.support.notes import NOTES, note

GOOD = '[["%s"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
MARKER = re.compile(rb"bad-(\d+)-")
LETTERS = "celery.dead_letters"
JSON = "application/json"


# --- sending ---------------------------------------------------------------------------------------


def publish(number: int, body: bytes, headers: dict[str, Any], kind: str = JSON, exchange: str = "") -> None:
    """Put a message into the queue as it is."""
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            body,
            exchange=exchange,
            routing_key="nobody" if exchange else QUEUE,
            headers=headers,
            content_type=kind,
            content_encoding="utf-8",
            declare=[],
            correlation_id=id_of(number, "bad"),
        )


def odd(body: str = GOOD, kind: str = JSON, exchange: str = "", **headers: Any) -> Callable[[int], None]:
    """Return what sends a message with something odd; ``%s`` in the body becomes the marker."""

    def send(number: int) -> None:
        usual = {"id": id_of(number, "bad"), "task": work.name}
        text = (body % f"bad-{number}-").encode()
        publish(number, text, {**usual, **headers}, kind, exchange)

    return send


def element(text: bytes) -> Callable[[int], None]:
    """Return what puts an element into the queue that is not a message."""
    return lambda number: server().lpush(QUEUE, text % (b"bad-%d-" % number))


def task(which: Any) -> Callable[[int], None]:
    """Return what sends a task that ends badly."""
    return lambda number: which.apply_async((f"bad-{number}-",), task_id=id_of(number, "bad"))


class Bomb:
    """What a pickle could do."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {NOTES}/exploded # {self.marker}",)


def bomb(number: int) -> None:
    """Send a pickle."""
    body = pickle.dumps([[Bomb(f"bad-{number}-")], {}, {}], protocol=0)
    publish(number, body, {"id": id_of(number, "bad"), "task": work.name}, "application/x-python-serialize")


def bare(number: int) -> None:
    """Send a message that does not belong to a task."""
    publish(number, f'{{"hello": "bad-{number}-"}}'.encode(), {})


# (kind, reason of the dead letter, what sends it)
BAD: tuple[tuple[str, str, Callable[[int], None]], ...] = (
    ("broken JSON", "undecodable", odd('[["%s"')),
    ("pickle", "refused", bomb),
    ("unknown task", "unknown", odd(task="chaos.nobody")),
    ("no arguments", "malformed", odd('{"no": "%s"}')),
    ("wrong arguments", "malformed", odd('[{}, [], "%s"]')),
    ("short body", "malformed", odd('["%s"]')),
    ("bad time limit", "malformed", odd(timelimit="soon")),
    ("bad retries", "malformed", odd(retries="many")),
    ("bad stamps", "malformed", odd(stamped_headers=[{}])),
    ("no id", "malformed", odd(id=None)),
    ("name is a list", "malformed", odd(task=["chaos_app.work"])),
    ("no task", "malformed", bare),
    ("garbage", "undecodable", element(b"\xff garbage %s")),
    ("no envelope", "undecodable", element(b'{"x": "%s"}')),
    ("bad base64", "undecodable", element(b'{"body": "%%%s", "properties": {}}')),
    ("bad ETA", "eta", odd(eta="tomorrow")),
    ("ETA out of range", "eta", odd(eta="9999-12-31T23:59:59-12:00")),
    ("ETA is a number", "eta", odd(eta=5)),
    ("no route", "unroutable", odd(exchange="nowhere")),
    ("fails", "failed", task(fails)),
    ("rejects", "rejected", task(rejects)),
    ("dies", "lost", task(dies)),
    ("out of memory", "lost", task(eats)),
    ("hangs", "time_limit", task(hangs)),
    ("fails after a retry", "failed", task(fails_later)),
)


def chord_of(*header: Any, last: Any = body, errbacks: tuple[str, ...] = ()) -> Callable[[int], None]:
    """Return what sends a chord; its body knows the number, and where it was sent."""

    def send(number: int) -> None:
        signature = last.s(number, SIDE).set(task_id=id_of(number, "chord"))
        for what in errbacks:
            signature.on_error(errback.s(what))
        chord([each.clone() for each in header], signature).apply_async()

    return send


_FAILS = fails.s("in a chord")
# (kind, state that the body ends in, what sends it)
CHORDS: tuple[tuple[str, str, Callable[[int], None]], ...] = (
    ("good", states.SUCCESS, chord_of(part.s(1), part.s(2), part.s(3))),
)
POISON: tuple[tuple[str, str, Callable[[int], None]], ...] = (
    (
        "group in a chain, results ignored",
        states.SUCCESS,
        chord_of(chain(quiet.si(0), group(quiet.si(1), quiet.si(2))), part.s(3)),
    ),
    ("part fails", states.FAILURE, chord_of(part.s(1), _FAILS)),
    ("error of 300 kB", states.FAILURE, chord_of(part.s(1), fails.s("x" * 300_000))),
    ("part dies", states.FAILURE, chord_of(part.s(1), dies.s("in a chord"))),
    ("part hangs", states.FAILURE, chord_of(part.s(1), hangs.s("in a chord"))),
    ("body cannot be sent", states.FAILURE, chord_of(part.s(1), part.s(2), last=closed)),
    ("slow errback", states.FAILURE, chord_of(part.s(1), _FAILS, errbacks=("slow",))),
    ("errback exits", states.FAILURE, chord_of(part.s(1), _FAILS, errbacks=("exits",))),
)


def turns(
    first: int, kinds: Sequence[tuple[str, str, Callable[[int], None]]]
) -> Iterator[tuple[str, str, Callable[[int], None]]]:
    """Return each kind, again and again, each time in another order that follows from the seed."""
    dice = random.Random(f"{SEED}/{first}")  # noqa: S311
    while True:
        yield from dice.sample(kinds, len(kinds))


def send_one(number: int, notes: str, what: tuple[str, str, Callable[[int], None]]) -> None:
    """Send a bad task or a chord, and note it."""
    kind, expected, send_it = what
    try:
        send_it(number)
    except Exception as exc:
        print(f"{number}, {kind}: {exc!r}", file=sys.stderr)
    else:
        note(notes, number, expected, kind)


def send(load: dict[str, Any]) -> dict[str, Any]:
    """Send tasks at a steady rate until so many were sent; what could not be sent is not sent again.

    Args:
        load: ``first`` number; ``tasks``, so many good ones, in ``seconds``; ``bad`` ones among them, of the kinds
            ``kinds`` (empty: all); ``chords``, and ``poison``: so many bad chords. Every second good task gets a
            countdown of up to ``countdown`` seconds, every tenth one runs for ``long`` seconds (0: none does).
    """
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    number, count, dice = load["first"], load["tasks"], random.Random(f"{SEED}/{load['first']}/load")  # noqa: S311
    others = {
        "bad": ("sent-bad", turns(number, [each for each in BAD if each[0] in (load["kinds"] or [each[0]])])),
        "chords": ("sent-chord", turns(number, CHORDS)),
        "poison": ("sent-chord", turns(number, POISON)),
    }
    while counts["sent"] < count and time.monotonic() < begun + 3 * load["seconds"]:
        time.sleep(max(0.0, begun + counts["sent"] * load["seconds"] / count - time.monotonic()))
        args = (number, load["long"]) if load["long"] and number % 10 == 0 else (number,)
        countdown = dice.uniform(0, load["countdown"]) if load["countdown"] and number % 2 else None
        at = time.time()
        try:
            work.apply_async(args, task_id=id_of(number), countdown=countdown)
        except Exception as exc:
            # The caller knows; nothing was promised, though it may be there all the same.
            counts["refused"] += 1
            print(f"{number}: {exc!r}", file=sys.stderr)
        else:
            note("sent", number, f"{at:.3f}")
            counts["sent"] += 1
        number += 1
        for what, (notes, turn) in others.items():
            if counts[what] < load[what] and counts["sent"] * load[what] >= (counts[what] + 1) * count:
                send_one(number, notes, next(turn))
                counts[what] += 1
                number += 1
    return {**counts, "next": number, "late": counts["sent"] < count}


# --- counting --------------------------------------------------------------------------------------


class Letters:
    """The queue of dead letters; what is taken from it is noted first, in ``letters`` (number, reason)."""

    def __init__(self) -> None:
        parts = urlsplit(os.environ["CHAOS_LETTERS"])
        self._connection = amqp.Connection(
            host=f"{parts.hostname}:{parts.port}",
            userid=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            virtual_host=unquote(parts.path[1:]),
        )
        self._connection.connect()
        self._channel = self._connection.channel()

    def take(self) -> None:
        """Take all that are there."""
        from celery_hybrid.dead_letters.letter import DeadLetter

        while message := self._channel.basic_get(LETTERS, no_ack=False):
            letter = DeadLetter.from_body(message.body)
            if marker := MARKER.search(letter.body):
                note("letters", int(marker[1]), letter.reason)
            else:
                # Tasks of chords have no number of their own.
                number = next(iter(json.loads(letter.body)[0]), None)
                note("letters", number if isinstance(number, int) else "chord", letter.reason)
            self._channel.basic_ack(message.delivery_tag)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@cache
def look() -> redis.Redis:
    """Return a client of Redis with all rights."""
    return redis.Redis.from_url(os.environ["CHAOS_LOOK"], socket_timeout=10)


def elements(client: redis.Redis) -> list[bytes]:
    """Return all that is in Redis and not done: queued, unacknowledged, set aside, undeliverable."""
    found: list[bytes] = []
    for key in (QUEUE, UNDELIVERABLE, "celery.undecodable"):
        found += client.lrange(key, 0, -1)  # type: ignore[misc]
    found += client.hvals("unacked")  # type: ignore[misc]
    return found


def names_in(text: bytes) -> set[str]:
    """Return ids of good tasks and markers of bad ones that an element names."""
    texts = [text]
    for encoded in re.findall(rb'"body": ?"([A-Za-z0-9+/=]+)"', text):
        with contextlib.suppress(ValueError):
            texts.append(base64.b64decode(encoded))
    for each in texts:
        if marker := MARKER.search(each):
            return {f"bad-{int(marker[1])}"}
    return {found.decode() for found in re.findall(rb'"id": ?"([0-9a-f-]{36})"', text)}


def waiting() -> int:
    """Return how many records wait in the outboxes of this side's workers."""
    count = 0
    for file in Path(os.environ["XDG_STATE_HOME"]).rglob("*.sqlite3"):
        with contextlib.closing(sqlite3.connect(file, timeout=5)) as database:
            count += database.execute("SELECT count(*) FROM records").fetchone()[0]
    return count


def open_chords() -> int:
    """Return how many chords have not ended."""
    return int(look().zcard(CHORDS_OPEN)) + int(look().zcard(CHORDS_READY))  # type: ignore[arg-type]


def settle(patience: float) -> float:
    """Wait until nothing is left to do, or nothing more happens for so many seconds; return how long it took."""
    begun = changed = time.monotonic()
    seen: Any = None
    while time.monotonic() < changed + patience and time.monotonic() < begun + 4 * patience:
        try:
            left = (len(elements(look())), waiting(), open_chords())
        except (redis.RedisError, sqlite3.Error):
            left = (-1, -1, -1)
        if left == (0, 0, 0):
            break
        if left != seen:
            seen, changed = left, time.monotonic()
        time.sleep(0.5)
    return time.monotonic() - begun


#: A bad message without a task has no record, so it is PENDING.
_SETTLED = states.READY_STATES | {states.PENDING}


def count(first: int, last: int, patience: float) -> dict[str, Any]:
    """Read results, dead letters and what is left."""
    seconds = settle(patience)
    numbers = {id_of(number, what): number for number in range(first, last) for what in ("task", "bad")}
    good = {id_of(number) for number in lines("sent", first, last)}
    bad = {id_of(number, "bad") for number in lines("sent-bad", first, last)}
    # Those that are missing are not waited for: nothing is under way any more.
    chords = {id_of(number, "chord"): number for number in lines("sent-chord", first, last)}
    found = dict(app.backend.get_many([*good, *bad, *chords], interval=1, max_iterations=2))
    right = [numbers[task_id] for task_id in good & found.keys() if is_right(found[task_id], numbers[task_id])]
    # Letters may be behind the results.
    letters = Letters()
    letters.take()
    letters.close()
    named = set().union(*map(names_in, elements(look())))
    return {
        "right": right,
        "wrong": [numbers[task_id] for task_id in good & found.keys() if numbers[task_id] not in right],
        "told": [numbers[task_id] for task_id in bad & found.keys()],
        "unfinished": [numbers[each] for each in bad if app.AsyncResult(each).state not in _SETTLED],
        "chords": {number: found[task_id]["status"] for task_id, number in chords.items() if task_id in found},
        "left": [numbers.get(name) or int(name[4:]) for name in named if name in numbers or name.startswith("bad-")],
        "seconds": seconds,
        "outbox": waiting(),
    }


def lines(notes: str, first: int, last: int) -> list[int]:
    """Return the numbers of a phase that a file begins its lines with."""
    path = NOTES / notes
    numbers = [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []
    return [number for number in numbers if first <= number < last]


def is_right(meta: dict[str, Any], number: int) -> bool:
    """Return whether it is the result of a good task."""
    return bool(meta["status"] == states.SUCCESS and meta["result"] == number)


def main() -> int:
    """Do what the arguments say."""
    command, *arguments = sys.argv[1:]
    values = [json.loads(argument) for argument in arguments]
    print(json.dumps(send(*values) if command == "send" else count(*values)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

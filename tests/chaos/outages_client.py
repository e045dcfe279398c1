# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client processes of the fault scenario: one sends tasks and waits for some, another one reads all results.

    outages_client send FIRST LEAST RATE PAUSE PATIENCE    until standard input ends and at least LEAST tasks are sent
    outages_client read FIRST COUNT CHORDS

Both print one line of JSON in the end; ``send`` prints an empty line when it begins.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from celery import chord, states
from celery.exceptions import BackendGetMetaError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

from tests.chaos.outages_app import CHORD, app, body_of, fails, id_of, part, total, value_of, work

# One of so many tasks is waited for, one chord is sent in so many seconds.
SHARE = 5
CHORD_SECONDS = 2.5
WAITERS = 4
# What get() may take beyond its timeout.
MARGIN = 10.0
# For all that is there already.
READ_SECONDS = 40.0


def wrong(number: int, state: str, result: Any) -> str | None:
    """Return what differs from the expected outcome of a task, or None."""
    expected = states.FAILURE if fails(number) else states.SUCCESS
    value = value_of(number)
    if state != expected:
        return f"state {state} instead of {expected}"
    same = isinstance(result, ValueError) and result.args == (value,) if expected == states.FAILURE else result == value
    return None if same else f"{str(result)[:60]!r} instead of {value[:60]!r}"


class Sender:
    """Sends tasks at a steady rate, and chords beside them.

    Args:
        first: number of the first task.
        least: so many are sent, also when the end is announced.
        rate: tasks per second.
        pause: seconds that a task takes.
        patience: seconds that it waits for a result.
    """

    def __init__(self, first: int, least: int, rate: float, pause: float, patience: float) -> None:
        self.first, self.least, self.rate, self.pause, self.patience = first, least, rate, pause, patience
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self.complaints: list[str] = []
        self.ending = threading.Event()
        #: Numbers of tasks and chords that get() has not returned for in time.
        self.hung: list[int] = []
        self._waiting: queue.SimpleQueue[tuple[int, Callable[[int], None]] | None] = queue.SimpleQueue()

    def run(self) -> dict[str, Any]:
        """Send until the end; return what happened."""
        threads = [threading.Thread(target=self._wait) for _ in range(WAITERS)]
        chords = threading.Thread(target=self._chords)
        begun = time.monotonic()
        for thread in (*threads, chords):
            thread.start()
        sent = 0
        while not self.ending.is_set() or sent < self.least:
            number = self.first + sent
            time.sleep(max(0.0, begun + sent / self.rate - time.monotonic()))
            self._send(number)
            sent += 1
            if number % SHARE == 0:
                self._waiting.put((number, self._get))
        chords.join()
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join()
        ends = {"longest": self.longest, "hung": self.hung, "complaints": self.complaints[:5]}
        return {"sent": sent, **self.counts, **ends}

    def _send(self, number: int) -> None:
        while True:
            try:
                work.apply_async((number, self.pause), task_id=id_of(number))
            except OperationalError:
                # The broker is away. Whether the message has arrived is not known, so it may run twice.
                self.counts["sent again"] += 1
                time.sleep(0.25)
            else:
                return

    def _chords(self) -> None:
        number = self.first
        while not self.ending.wait(CHORD_SECONDS):
            body = total.s().set(task_id=id_of(number, "body"))
            try:
                result = chord([part.s(number + place) for place in range(CHORD)], body).apply_async()
            except Exception as exc:
                # The caller knows; nothing was promised.
                self.counts["chords refused"] += 1
                self.complaints.append(f"chord: {exc}")
                # Its parts may be under way, so its body must not be expected, nor its id be used again.
            else:
                self.counts["chords"] += 1
                self._waiting.put((number, partial(self._get_body, result)))
                print(json.dumps({"chord": number}), flush=True)
            number += CHORD

    def _wait(self) -> None:
        while (wait := self._waiting.get()) is not None:
            number, look = wait
            begun = time.monotonic()
            in_time = True
            try:
                look(number)
            except CeleryTimeoutError:
                in_time = False
            seconds = time.monotonic() - begun
            self.longest = max(self.longest, seconds)
            if not in_time or seconds > self.patience + MARGIN:
                self.hung.append(number)

    def _patiently(self, result: Any) -> Any:
        """Call ``get()``, again when it raises because RabbitMQ is away."""
        end = time.monotonic() + self.patience
        while True:
            try:
                return result.get(timeout=max(0.1, end - time.monotonic()), propagate=result.parent is not None)
            except BackendGetMetaError as exc:
                self.counts["raised"] += 1
                self.complaints.append(f"get() raised {exc}")
                if time.monotonic() > end:
                    raise CeleryTimeoutError from exc
                time.sleep(1)

    def _get(self, number: int) -> None:
        result = app.AsyncResult(id_of(number))
        value = self._patiently(result)
        self.counts["waited"] += 1
        if difference := wrong(number, result.state, value):
            self.counts["wrong"] += 1
            self.complaints.append(f"get() of task {number}: {difference}")

    def _get_body(self, result: Any, number: int) -> None:
        value = self._patiently(result)
        self.counts["bodies"] += 1
        if value != body_of(number):
            self.counts["wrong"] += 1
            self.complaints.append(f"chord {number}: {value!r} instead of {body_of(number)}")


def send(first: int, least: int, rate: float, pause: float, patience: float) -> dict[str, Any]:
    """Send tasks until standard input ends."""
    if app.AsyncResult(id_of(first)).state != states.PENDING:
        raise SystemExit("The server has results of a run with this seed; take another one.")
    sender = Sender(first, least, rate, pause, patience)
    print(flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), sender.ending.set()), daemon=True).start()
    return sender.run()


def read(first: int, count: int, chords: Iterable[int]) -> dict[str, Any]:
    """Read every result by its id and compare it."""
    numbers = {id_of(number): number for number in range(first, first + count)}
    bodies = {id_of(number, "body"): number for number in chords}
    found: dict[str, Any] = {}
    with contextlib.suppress(CeleryTimeoutError):
        # Not in one go: what was found before the time is over counts.
        found.update(app.backend.get_many([*numbers, *bodies], timeout=READ_SECONDS))
    lost = [number for task_id, number in numbers.items() if task_id not in found]
    lost_bodies = [number for task_id, number in bodies.items() if task_id not in found]
    changed = [
        f"task {number}: {difference}"
        for task_id, number in numbers.items()
        if task_id in found and (difference := wrong(number, found[task_id]["status"], found[task_id]["result"]))
    ]
    changed += [
        f"chord {number}: {found[task_id]['result']!r}"
        for task_id, number in bodies.items()
        if task_id in found and found[task_id]["result"] != body_of(number)
    ]
    # The way that applications read; the answer has to be the same.
    for task_id, number in list(numbers.items())[:: max(1, count // 100)]:
        result = app.AsyncResult(task_id)
        if task_id in found and (difference := wrong(number, result.state, result.result)):
            changed.append(f"AsyncResult of task {number}: {difference}")
    return {
        "read": len(numbers) - len(lost),
        "lost": lost,
        "lost bodies": {number: list(range(number, number + CHORD)) for number in lost_bodies},
        "states of lost": {number: app.AsyncResult(id_of(number)).state for number in lost[:5]},
        "changed": changed,
    }


def main() -> int:
    """Do what the arguments say."""
    command, *arguments = sys.argv[1:]
    values = [json.loads(argument) for argument in arguments]
    print(json.dumps(send(*values) if command == "send" else read(*values)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

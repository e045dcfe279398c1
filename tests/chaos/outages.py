#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill, stop, cut off and fill RabbitMQ under load, and count what becomes of every result.

One host of ``tests/inventory/faults.yml`` carries Redis and RabbitMQ, set up by the roles; a worker and the clients
run here. In each phase tasks are sent at a steady rate before, during and after a fault. Each notes that it runs, and
returns a value that follows from its number and the seed. When everything is quiet again, a fresh process with the
rights of a client reads every result by its id. A result that cannot be read is lost, another value or state is
changed; either makes this fail, and so does a client that hangs.

    python -m tests.chaos.outages [--quick] [--seed N] [--image debian12] [--phase NAME]…
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import secrets
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.strokes import fill, memory_alarm, standing_still
from tests.support.lab import (
    AMQP_PORT,
    INVENTORIES,
    PACKAGE,
    PINS,
    ROOT,
    Client,
    Filter,
    Servers,
    Worker,
    end_in_order,
    host,
    lines_of,
    markdown,
    say,
    small_disk,
    venv,
)

HERE = Path(__file__).resolve().parent
# Debian release: (inventory, address of its only host). RabbitMQ 3.10 is on Debian 12, 4.0 on Debian 13.
HOSTS = {"debian13": ("faults.yml", "10.213.23.13"), "debian12": ("faults_on_debian12.yml", "10.213.23.12")}
CACHE = ROOT / ".cache" / "faults"
NOTES = CACHE / "notes"
# A file system of its own, so that it can be filled. The outbox leaves 16 MiB of any disk alone.
SMALL_DISK = CACHE / "small-disk"
# Marks our rules of the packet filter; nothing without it is touched.
COMMENT = "celeryops.hybrid faults"
PROCESSES = 4
# Numbers of a phase begin at a multiple of this.
NUMBERS = 100_000
# Nothing may take longer, whatever hangs.
LIMIT = 900
# Seconds without progress, while something is still to be done, after which a run gives up.
STUCK = 30.0
# After so many tasks each of the worker's processes has run some, and has its connections.
WARM = 30


@dataclasses.dataclass(frozen=True)
class Phase:
    """A fault, and the load that it meets.

    Attributes:
        name: for the command line.
        title: in the table.
        fault: makes it, and returns when it is over; given the seconds that it lasts.
        seconds: that it lasts.
        rate: tasks per second.
        pause: seconds that a task takes.
        least: tasks are sent until there are so many, and the fault is over.
        visibility: seconds after which Redis hands on what a lost worker has not acknowledged.
        drops: whether a message may get lost between Redis and the worker: what Redis has handed out is in no list of
            unacknowledged messages until the worker has put it there, and then the task never runs.
        options: of the result backend, for the worker.
    """

    name: str
    title: str
    fault: Callable[[Faults, float], None]
    seconds: float
    rate: float = 25.0
    pause: float = 0.02
    least: int = 0
    # No task may take so long, also not while it waits for a full outbox.
    visibility: float = 150.0
    drops: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Executed:
    """A task that has run: its id, and each time, in seconds since the epoch."""

    id: str
    times: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Row:
    """What became of the tasks of a phase."""

    title: str
    sent: int = 0
    executed: int = 0
    twice: int = 0
    direct: int = 0
    outbox: int = 0
    read: int = 0
    lost: int = 0
    changed: int = 0
    left: int = 0
    waited: str = ""
    chords: str = ""
    pace: str = ""
    longest: float = 0.0
    bad: bool = False


# --- the faults ------------------------------------------------------------------------------------


class Faults:
    """The faults; each leaves everything as it was, whatever happens.

    Args:
        servers: the host.
        dice: decides when exactly.
    """

    def __init__(self, servers: Servers, dice: random.Random) -> None:
        self.servers = servers
        self.filter = Filter(servers.address, COMMENT, AMQP_PORT)
        self.dice = dice
        self.worker: Worker | None = None

    def hold(self, seconds: float, *, keep: bool = True) -> None:
        """Let time pass; the worker is started again when it ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if keep and self.worker is not None:
                self.worker.ensure()
            time.sleep(min(0.5, left))

    def start_rabbitmq(self) -> None:
        """Start it, and wait until it works."""
        self.servers.shell("systemctl start rabbitmq-server && rabbitmqctl -q await_startup")

    def killed(self, seconds: float) -> None:
        """RabbitMQ is killed again and again."""
        times = max(1, round(seconds / 15))
        for _ in range(times):
            try:
                self.servers.shell("systemctl kill --signal=KILL rabbitmq-server")
                self.hold(self.dice.uniform(1, 3))
            finally:
                self.start_rabbitmq()
            self.hold(self.dice.uniform(3, 6))

    def stopped(self, seconds: float) -> None:
        """RabbitMQ is stopped."""
        try:
            self.servers.shell("systemctl stop rabbitmq-server")
            self.hold(seconds)
        finally:
            self.start_rabbitmq()

    def disk_filled(self, seconds: float) -> None:
        """RabbitMQ is stopped, and meanwhile others fill the disk of the outbox to the last byte; it stays full."""
        try:
            self.servers.shell("systemctl stop rabbitmq-server")
            self.hold(seconds / 2)
            fill(SMALL_DISK / "others")
            self.hold(seconds / 2)
        finally:
            self.start_rabbitmq()

    def frozen(self, seconds: float) -> None:
        """RabbitMQ's process stands still; the kernel goes on taking bytes for it."""
        with standing_still(self.servers, "beam.smp"):
            self.hold(seconds)

    def cut(self, seconds: float) -> None:
        """Nothing comes through between this machine and RabbitMQ."""
        with self.filter.dropping(both=True):
            self.hold(seconds)

    def half_open(self, seconds: float) -> None:
        """RabbitMQ hears us, and we hear nothing."""
        with self.filter.dropping(both=False):
            self.hold(seconds)

    def memory_alarm(self, seconds: float) -> None:
        """RabbitMQ's memory alarm goes off."""
        with memory_alarm(self.servers):
            self.hold(seconds)

    def disk_alarm(self, seconds: float) -> None:
        """RabbitMQ's disk alarm goes off."""
        limit = self.servers.shell("rabbitmqctl eval 'rabbit_disk_monitor:get_disk_free_limit().'")
        try:
            self.servers.shell("rabbitmqctl -q set_disk_free_limit 1000000GB")
            self.hold(seconds)
        finally:
            self.servers.shell(f"rabbitmqctl -q set_disk_free_limit {limit}")

    def worker_killed(self, seconds: float) -> None:
        """The whole worker is killed while RabbitMQ is away."""
        assert self.worker is not None
        try:
            self.servers.shell("systemctl stop rabbitmq-server")
            self.hold(seconds + self.dice.uniform(0, 1))
            self.worker.kill()
        finally:
            self.start_rabbitmq()
        self.worker.ensure()

    def redis_stopped(self, seconds: float) -> None:
        """The broker is stopped, RabbitMQ is not."""
        try:
            self.servers.shell("systemctl stop redis-server")
            self.hold(seconds)
        finally:
            self.servers.shell("systemctl start redis-server")


PHASES = (
    Phase("killed", "killed -9, again and again", Faults.killed, 45, rate=100, pause=0.01, least=5000),
    Phase("stopped", "stopped", Faults.stopped, 20),
    Phase("frozen", "frozen (SIGSTOP)", Faults.frozen, 15),
    Phase("cut", "cut off, both directions", Faults.cut, 15),
    Phase("half-open", "half-open, nothing comes back", Faults.half_open, 15),
    Phase("memory", "memory alarm", Faults.memory_alarm, 15),
    Phase("disk", "disk alarm", Faults.disk_alarm, 15),
    Phase(
        "worker", "stopped, and the worker killed -9", Faults.worker_killed, 8, pause=0.12, visibility=15, drops=True
    ),
    Phase("redis", "Redis stopped", Faults.redis_stopped, 10, visibility=15, drops=True),
    Phase("outbox", "stopped, outbox of 50 records", Faults.stopped, 15, options={"outbox_max_records": 50}),
    Phase(
        "full-disk",
        "stopped, disk of the outbox full",
        Faults.disk_filled,
        12,
        options={"outbox": str(SMALL_DISK / "outbox.sqlite3")},
    ),
)
# Phase: seconds of its fault, in a quick run.
QUICK = {"killed": 15.0, "half-open": 5.0}


# --- the run ---------------------------------------------------------------------------------------


class Run:
    """All phases, one after the other.

    Args:
        servers: the host.
        programs: of the virtual environment.
        seed: decides values, sizes and moments.
        quick: whether there is less before and after.
    """

    def __init__(self, servers: Servers, programs: Path, seed: int, *, quick: bool) -> None:
        self.servers = servers
        self.programs = programs
        self.faults = Faults(servers, random.Random(seed))  # noqa: S311
        self.quick = quick
        self.margin = 2.0 if quick else 3.0
        self.common = {
            **os.environ,
            "CHAOS_QUEUE": f"faults-{secrets.token_hex(4)}",
            "CHAOS_SEED": str(seed),
            "CHAOS_NOTES": str(NOTES),
            "CHAOS_VISIBILITY": "150",
            "CHAOS_OPTIONS": "{}",
            "XDG_STATE_HOME": str(CACHE / "state"),
            "PYTHONPATH": str(ROOT),
        }
        self.common.pop("STATE_DIRECTORY", None)
        self.client = {**self.common, **servers.environment("client")}
        self._settings: tuple[Any, ...] | None = None

    def close(self) -> None:
        """End the worker."""
        if self.faults.worker is not None:
            self.faults.worker.close()
            self.faults.worker = None
        self._settings = None

    def worker_for(self, phase: Phase) -> Worker:
        """Return a worker with the settings of a phase; one that has them already goes on."""
        settings = (phase.visibility, phase.options)
        if self.faults.worker is None or settings != self._settings:
            self.close()
            environment = {
                **self.common,
                **self.servers.environment("worker"),
                "CHAOS_VISIBILITY": str(phase.visibility),
                "CHAOS_OPTIONS": json.dumps(phase.options),
            }
            self._settings = settings
            options = ["--pool=prefork", f"--concurrency={PROCESSES}", "--loglevel=INFO", "--hostname=worker@faults"]
            command = ["--app=tests.chaos.outages_app", "worker", *options, "--without-mingle", "--without-gossip"]
            self.faults.worker = Worker([self.programs / "celery", *command], environment, CACHE / "worker.log", HERE)
            self.faults.worker.ensure()
        return self.faults.worker

    def phase(self, number: int, phase: Phase) -> Row:
        """Run one phase."""
        first = number * NUMBERS
        worker = self.worker_for(phase)
        starts = worker.starts
        # Not indefinitely where a task may never run, and longer than any backlog elsewhere.
        load = (first, phase.least, phase.rate, phase.pause, 45 if phase.drops else 150)
        with contextlib.closing(self.client_that("send", *load)) as sender:
            if not sender.line():
                sender.answer()
            # A worker that has just started would be taken for a slow one.
            self.wait_for(first + WARM)
            begun = time.time()
            self.faults.hold(self.margin)
            broken = time.time()
            phase.fault(self.faults, phase.seconds)
            mended = time.time()
            self.faults.hold(self.margin)
            ending = time.time()
            sender.announce_end()
            sent, said = sender.answer()
        chords = [line["chord"] for line in said]
        numbers = range(first, first + sent["sent"])
        self.settle(phase, numbers)
        settled = time.time() - ending
        left = self.depth(phase)
        with contextlib.closing(self.client_that("read", first, len(numbers), chords)) as reader:
            seen, _ = reader.answer()
        row = self.row(phase, numbers, sent, seen)
        row.left = left
        row.bad = row.bad or left > 0
        before, during = (self.pace(numbers, *times) for times in ((begun, broken), (broken, mended)))
        row.pace = f"{before:.0f} / {during:.0f}"
        for complaint in [*sent["complaints"], *seen["changed"][:5]]:
            say(complaint)
        if seen["lost"]:
            say(f"lost: {seen['lost'][:20]} {seen['states of lost']}; bodies {list(seen['lost bodies'])}")
        if worker.starts != starts:
            say(f"the worker was started again {worker.starts - starts} times")
        say(f"{phase.title}: {mended - broken:.0f} s of fault, quiet {settled:.0f} s after the last task was sent")
        return row

    def client_that(self, *arguments: Any) -> Client:
        """Start a client."""
        program = (self.programs / "python", "-m", "tests.chaos.outages_client")
        return Client(program, self.client, CACHE / "client.log", *arguments)

    def wait_for(self, number: int) -> None:
        """Wait until a task has run."""
        end = time.monotonic() + 60
        while number not in self.executed():
            if time.monotonic() > end:
                raise SystemExit(f"No task runs; see {CACHE / 'worker.log'}.")
            time.sleep(0.1)

    def settle(self, phase: Phase, numbers: range) -> None:
        """Wait until all tasks have run and the outbox is empty, for a limited time."""
        # A busy machine may take its time, but something has to happen.
        # Others take over what was seen overdue twice, 15 s apart, and each look is up to 5 s late.
        patience = phase.visibility + 30 if phase.drops else STUCK
        seen, changed = None, time.monotonic()
        while time.monotonic() < changed + patience:
            executed = self.executed()
            ids = {executed[number].id for number in numbers if number in executed}
            missing, left = len(ids - self.stored().keys()), self.depth(phase)
            if len(ids) == len(numbers) and not missing and not left:
                return
            if (len(ids), missing, left) != seen:
                seen, changed = (len(ids), missing, left), time.monotonic()
            self.faults.hold(0.5)

    def depth(self, phase: Phase) -> int:
        """Return how many records wait in the worker's outbox."""
        path = phase.options.get("outbox")
        files = [Path(path)] if path else list((CACHE / "state" / "celery-hybrid").glob("*.sqlite3"))
        count = 0
        for file in files:
            with contextlib.closing(sqlite3.connect(file, timeout=5)) as database:
                count += database.execute("SELECT count(*) FROM records").fetchone()[0]
        return count

    def executed(self) -> dict[int, Executed]:
        """Return for each task that has run its id and when that was."""
        found: dict[int, Executed] = {}
        for number, task_id, at in lines_of(NOTES / "executed"):
            found.setdefault(int(number), Executed(task_id)).times.append(float(at))
        return found

    def stored(self) -> dict[str, set[str]]:
        """Return for each id which ways its results went."""
        found: dict[str, set[str]] = {}
        for task_id, way in lines_of(NOTES / "stored"):
            found.setdefault(task_id, set()).add(way)
        return found

    def pace(self, numbers: range, begin: float, end: float) -> float:
        """Return how many tasks were executed in a second."""
        executed = self.executed()
        count = sum(begin <= at < end for number in numbers if number in executed for at in executed[number].times)
        return count / (end - begin)

    def row(self, phase: Phase, numbers: range, sent: dict[str, Any], seen: dict[str, Any]) -> Row:
        """Count."""
        executed = {number: task for number, task in self.executed().items() if number in numbers}
        stored = self.stored()
        ways = Counter(way for task in executed.values() for way in stored.get(task.id, ()))
        get = Counter({name: value for name, value in sent.items() if isinstance(value, int)})
        # A task that never ran has no result to return, nor a chord one of whose parts never ran.
        parts = {int(number) for (number,) in lines_of(NOTES / "parts")}
        bodies = [body for body, needed in seen["lost bodies"].items() if not phase.drops or parts.issuperset(needed)]
        hung = [number for number in sent["hung"] if number in executed or not phase.drops]
        row = Row(
            phase.title,
            sent=len(numbers),
            executed=len(executed),
            twice=sum(len(task.times) > 1 for task in executed.values()),
            direct=ways["direct"],
            outbox=ways["outbox"],
            read=seen["read"],
            lost=len([number for number in seen["lost"] if number in executed]) + len(bodies),
            changed=len(seen["changed"]) + get["wrong"],
            waited=f"{get['waited']} / {get['raised']} / {len(hung)}",
            chords=f"{get['bodies']} / {get['chords refused']}",
            longest=sent["longest"],
        )
        row.bad = bool(row.lost or row.changed or hung or (row.executed != row.sent and not phase.drops))
        return row


# (attribute of a row, heading, what it is)
COLUMNS = (
    ("sent", "sent", "tasks"),
    ("executed", "executed", "different ones of them; a message may get lost with the worker that Redis gave it to"),
    ("twice", "twice", "executed more than once: Redis hands on what a lost worker has not acknowledged"),
    ("direct", "direct", "RabbitMQ took the result at once"),
    ("outbox", "outbox", "the result waited there"),
    ("read", "read", "by id, afterwards, by a fresh process"),
    ("lost", "lost", "executed and not readable; bodies of chords as well"),
    ("changed", "changed", "other value or state than the task's, also in get()"),
    ("left", "left", "records that are still in the outbox"),
    ("pace", "tasks/s", "executed before / during the fault"),
    ("waited", "get()", "that returned / raised at first, because RabbitMQ was away / hung"),
    ("longest", "longest", "get(), seconds"),
    ("chords", "chords", "whose body ran / that could not be sent, which the client was told"),
)


def table(rows: Sequence[Row]) -> str:
    """Return the table."""
    cells = [["phase", *(label for _, label, _ in COLUMNS)]]
    for row in rows:
        values = (getattr(row, name) for name, *_ in COLUMNS)
        cells.append([row.title, *(f"{value:.0f}" if isinstance(value, float) else str(value) for value in values)])
    return markdown(cells)


# --- set-up ----------------------------------------------------------------------------------------


def main() -> int:
    """Run the phases and print the table."""
    parser = argparse.ArgumentParser(description="Kill, stop, cut off and fill RabbitMQ under load.")
    parser.add_argument("--quick", action="store_true", help="two phases, in two minutes")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="makes the same values and moments again")
    parser.add_argument("--image", choices=HOSTS, default="debian13", help="release of Debian on the host")
    parser.add_argument("--phase", action="append", choices=[phase.name for phase in PHASES], help="only this one")
    parser.add_argument("--on", metavar="ADDRESS", help="a test host that the roles have set up and that stays")
    parser.add_argument("--package", type=Path, default=PACKAGE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    end_in_order(LIMIT)
    phases = [phase for phase in PHASES if phase.name in (options.phase or (QUICK if options.quick else phase.name))]
    if options.quick:
        phases = [dataclasses.replace(p, seconds=QUICK.get(p.name, p.seconds / 2), rate=25, least=0) for p in phases]
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in (NOTES, CACHE / "state"):
        shutil.rmtree(old, ignore_errors=True)
    for old in (CACHE / "worker.log", CACHE / "client.log"):
        old.unlink(missing_ok=True)
    NOTES.mkdir()
    rows: list[Row] = []
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        programs = venv(CACHE / "venv", *PINS, package=options.package) / "bin"
        inventory, address = HOSTS[options.image]
        if not options.on:
            stack.enter_context(host(INVENTORIES / inventory, CACHE / "site.log"))
        servers = Servers(options.on or address)
        everything = Run(servers, programs, options.seed, quick=options.quick)
        stack.enter_context(small_disk(SMALL_DISK))
        stack.callback(everything.faults.filter.clear)
        stack.callback(everything.close)
        everything.faults.filter.clear()
        versions = servers.versions()
        try:
            for number, phase in enumerate(phases):
                say(f"{phase.title} …")
                rows.append(everything.phase(number, phase))
        finally:
            print(f"{versions}; {', '.join(PINS)}; seed {options.seed}; {time.monotonic() - begun:.0f} s\n")
            print(table(rows))
            print("\n" + "\n".join(f"{label:<9} {meaning}" for _, label, meaning in COLUMNS), flush=True)
    return int(any(row.bad for row in rows))


if __name__ == "__main__":
    sys.exit(main())

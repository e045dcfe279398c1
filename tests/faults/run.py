#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill, stop, cut off and fill RabbitMQ under load, and count what becomes of every result.

One host of ``molecule/inventory/faults.yml`` carries Redis and RabbitMQ, set up by the roles; a worker and the clients
run here. In each phase tasks are sent at a steady rate before, during and after a fault. Each notes that it runs, and
returns a value that follows from its number and the seed. When everything is quiet again, a fresh process with the
rights of a client reads every result by its id. A result that cannot be read is lost, another value or state is
changed; either makes this fail, and so does a client that hangs.

    tests/faults/run.py [--quick] [--seed N] [--image debian12] [--phase NAME]…
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INVENTORIES = ROOT / "molecule" / "inventory"
# Debian release: (inventory, address of its only host). RabbitMQ 3.10 is on Debian 12, 4.0 on Debian 13.
HOSTS = {"debian13": ("faults.yml", "10.213.23.13"), "debian12": ("faults_on_debian12.yml", "10.213.23.12")}
STATE = ROOT / ".cache" / "hosts"
CACHE = ROOT / ".cache" / "faults"
NOTES = CACHE / "notes"
# A file system of its own, so that it can be filled. The outbox leaves 16 MiB of any disk alone.
SMALL_DISK = CACHE / "small-disk"
PACKAGE = ROOT / "roles" / "worker" / "files" / "celery-hybrid"
BIN = ROOT / ".venv" / "bin"
PINS = ("celery[redis]==5.7.0", "kombu==5.7.0", "redis==8.1.0", "amqp==5.4.2")
# Marks our rules of the packet filter; nothing without it is touched.
COMMENT = "celeryops.hybrid faults"
AMQP_PORT = "5672"
PROCESSES = 4
# Numbers of a phase begin at a multiple of this.
NUMBERS = 100_000
# Nothing may take longer, whatever hangs.
LIMIT = 900
# So long nothing may happen while something is still to be done.
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


# --- the servers -----------------------------------------------------------------------------------


class Servers:
    """The host with Redis and RabbitMQ."""

    def __init__(self, address: str) -> None:
        self.address = address

    def shell(self, script: str) -> str:
        """Run a script as root and return its output; SSH would split its words again."""
        done = subprocess.run(
            ["ssh", "-F", STATE / "ssh_config", self.address, f"sudo sh -c {shlex.quote(script)}"],
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{script}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def versions(self) -> str:
        """Return the versions of what runs there."""
        system = self.shell(". /etc/os-release; echo $PRETTY_NAME")
        redis = re.search(r"v=(\S+)", self.shell("redis-server --version"))
        return f"{system}, RabbitMQ {self.shell('rabbitmqctl version')}, Redis {redis[1] if redis else '?'}"

    def environment(self, user: str) -> dict[str, str]:
        """Return where processes with the rights of a user find the servers; passwords are not for arguments."""
        password = secret(f"rabbitmq_{user}")
        return {
            "FAULTS_BROKER": f"redis://celery:{secret('redis')}@{self.address}:6379/0",
            "FAULTS_RESULTS": f"amqp://{user}:{password}@{self.address}:{AMQP_PORT}/celery",
        }


class Filter:
    """The packet filter of this machine, as far as it concerns RabbitMQ on the host."""

    def __init__(self, address: str) -> None:
        mark = ("-m", "comment", "--comment", COMMENT, "-j", "DROP")
        self._out = ("OUTPUT", "-p", "tcp", "-d", address, "--dport", AMQP_PORT, *mark)
        self._in = ("INPUT", "-p", "tcp", "-s", address, "--sport", AMQP_PORT, *mark)

    @contextlib.contextmanager
    def dropping(self, *, both: bool) -> Iterator[None]:
        """Drop what comes from RabbitMQ; with ``both`` also what goes there."""
        try:
            for rule in (self._out, self._in) if both else (self._in,):
                root("iptables", "-w", "-I", *rule)
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """Take our rules away, also those that an earlier run has left."""
        for rule in (self._out, self._in):
            while root("iptables", "-w", "-D", *rule, check=False) == 0:
                pass


# --- processes -------------------------------------------------------------------------------------


class Worker:
    """A worker that is started again when it ends, as systemd does.

    Args:
        python: the virtual environment's folder of programs.
        environment: of its processes.
    """

    def __init__(self, python: Path, environment: dict[str, str]) -> None:
        self._program = python / "celery"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def ensure(self) -> None:
        """Start it unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()  # children that a main process has left
        self.starts += 1
        arguments = ["--app=faults_app", "worker", "--pool=prefork", f"--concurrency={PROCESSES}", "--loglevel=INFO"]
        with (CACHE / "worker.log").open("a") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments, "--hostname=worker@faults", "--without-mingle", "--without-gossip"],
                env=self._environment,
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the main process and its children, all at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                # Its own group, so nobody else is in it.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it as systemd does."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self.kill()


class Client:
    """A process with the rights of a client; its answer is one line of JSON."""

    def __init__(self, python: Path, environment: dict[str, str], *arguments: Any) -> None:
        with (CACHE / "client.log").open("a") as log:
            self._process = subprocess.Popen(
                [python / "python", HERE / "client.py", arguments[0], *map(json.dumps, arguments[1:])],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def line(self) -> str:
        """Wait for a line of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def announce_end(self) -> None:
        """Let it come to its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def answer(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait until it ends; return its answer and what it said before."""
        assert self._process.stdout is not None
        lines = [json.loads(line) for line in self._process.stdout if line.strip()]
        if self._process.wait() or not lines:
            raise SystemExit(f"A client has failed; see {CACHE / 'client.log'}.")
        return lines[-1], lines[:-1]

    def close(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


# --- the faults ------------------------------------------------------------------------------------


class Faults:
    """The faults; each leaves everything as it was, whatever happens.

    Args:
        servers: the host.
        dice: decides when exactly.
    """

    def __init__(self, servers: Servers, dice: random.Random) -> None:
        self.servers = servers
        self.filter = Filter(servers.address)
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
            with (SMALL_DISK / "others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            self.hold(seconds / 2)
        finally:
            self.start_rabbitmq()

    def frozen(self, seconds: float) -> None:
        """RabbitMQ's process stands still; the kernel goes on taking bytes for it."""
        try:
            self.servers.shell("kill -STOP $(pidof beam.smp)")
            self.hold(seconds)
        finally:
            self.servers.shell("kill -CONT $(pidof beam.smp)")

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
        limit = self.servers.shell("rabbitmqctl eval 'vm_memory_monitor:get_vm_memory_high_watermark().'")
        try:
            self.servers.shell("rabbitmqctl -q set_vm_memory_high_watermark 0.00001")
            self.hold(seconds)
        finally:
            self.servers.shell(f"rabbitmqctl eval 'vm_memory_monitor:set_vm_memory_high_watermark({limit}).'")

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
            "FAULTS_QUEUE": f"faults-{secrets.token_hex(4)}",
            "FAULTS_SEED": str(seed),
            "FAULTS_NOTES": str(NOTES),
            "FAULTS_VISIBILITY": "150",
            "FAULTS_OPTIONS": "{}",
            "XDG_STATE_HOME": str(CACHE / "state"),
            "PYTHONPATH": str(HERE),
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
                "FAULTS_VISIBILITY": str(phase.visibility),
                "FAULTS_OPTIONS": json.dumps(phase.options),
            }
            self._settings = settings
            self.faults.worker = Worker(self.programs, environment)
            self.faults.worker.ensure()
        return self.faults.worker

    def phase(self, number: int, phase: Phase) -> Row:
        """Run one phase."""
        first = number * NUMBERS
        worker = self.worker_for(phase)
        starts = worker.starts
        # Not for ever where a task may never run, and longer than any backlog elsewhere.
        load = (first, phase.least, phase.rate, phase.pause, 45 if phase.drops else 150)
        with contextlib.closing(Client(self.programs, self.client, "send", *load)) as sender:
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
        with contextlib.closing(Client(self.programs, self.client, "read", first, len(numbers), chords)) as reader:
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

    def wait_for(self, number: int) -> None:
        """Wait until a task has run."""
        end = time.monotonic() + 60
        while number not in self.executed():
            if time.monotonic() > end:
                raise SystemExit(f"No task runs; see {CACHE / 'worker.log'}.")
            time.sleep(0.1)

    def settle(self, phase: Phase, numbers: range) -> None:
        """Wait until all tasks have run and the outbox is empty, but not for ever."""
        # A busy machine may take its time, but something has to happen.
        patience = phase.visibility + 5 if phase.drops else STUCK
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
        for number, task_id, at in lines_of("executed"):
            found.setdefault(int(number), Executed(task_id)).times.append(float(at))
        return found

    def stored(self) -> dict[str, set[str]]:
        """Return for each id which ways its results went."""
        found: dict[str, set[str]] = {}
        for task_id, way in lines_of("stored"):
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
        parts = {int(number) for (number,) in lines_of("parts")}
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


def lines_of(notes: str) -> list[list[str]]:
    """Return the words of each line of a file that the processes append to."""
    path = NOTES / notes
    # The last one may be half written.
    return [line.split() for line in path.read_text().split("\n")[:-1]] if path.exists() else []


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
    head = ["phase", *(label for _, label, _ in COLUMNS)]
    cells = [head, ["---", *("---:" for _ in COLUMNS)]]
    for row in rows:
        values = (getattr(row, name) for name, *_ in COLUMNS)
        cells.append([row.title, *(f"{value:.0f}" if isinstance(value, float) else str(value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- set-up ----------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a progress line at once, not into the table."""
    print(f"  {text}", file=sys.stderr, flush=True)


def root(*command: str, check: bool = True) -> int:
    """Run a command of this machine as root and return its exit status."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    done = subprocess.run([*sudo, *command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.returncode


def run(*command: str | Path, output: Any = None) -> None:
    """Run a command in the checkout; what it says is no part of the table."""
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_DISPLAY_OK_HOSTS": "false"}
    subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=True, stdout=output or sys.stderr)


@contextlib.contextmanager
def host(image: str) -> Iterator[str]:
    """Boot a host, set it up, yield its address, and remove it, whatever happens."""
    name, address = HOSTS[image]
    inventory = INVENTORIES / name
    testhosts = (BIN / "python", ROOT / "tests" / "hosts" / "testhosts.py")
    try:
        run(*testhosts, "up", "-i", inventory)
        say("the roles set it up")
        with (CACHE / "site.log").open("w") as log:
            run(BIN / "ansible-playbook", "-i", inventory, "celeryops.hybrid.site", output=log)
        yield address
    finally:
        run(*testhosts, "down", "-i", inventory)


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Mount a file system that is easily filled."""
    SMALL_DISK.mkdir(parents=True, exist_ok=True)
    while root("umount", str(SMALL_DISK), check=False) == 0:
        pass  # of an earlier run
    mode = f"size=20m,mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    root("mount", "-t", "tmpfs", "-o", mode, "tmpfs", str(SMALL_DISK))
    try:
        yield
    finally:
        root("umount", str(SMALL_DISK))


def venv(*requirements: str, package: Path) -> Path:
    """Return a virtual environment with the package, made again when that has changed."""
    path = CACHE / "venv"
    files = sorted(package.rglob("*.py"))
    wanted = hashlib.sha256(repr((sys.version, requirements, [file.read_bytes() for file in files])).encode())
    stamp = path / "stamp"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return path
    say(f"{path.relative_to(ROOT)}: installing")
    install = (path / "bin" / "pip", "install", "-qq", "--disable-pip-version-check")
    run(sys.executable, "-m", "venv", "--clear", path)
    run(*install, *requirements)
    # A copy, because the build leaves its own files behind.
    copy = path / "package"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests"))
    run(*install, "--no-deps", copy)
    stamp.write_text(wanted.hexdigest())
    return path


def secret(name: str) -> str:
    """Return a secret of the test hosts, fit for a URL."""
    return quote((STATE / "secrets" / name).read_text().strip(), safe="")


def end(number: int, _: Any) -> None:
    """Leave in order, so that everything is cleaned up."""
    raise SystemExit(f"Ended by signal {number}." if number != signal.SIGALRM else f"It took more than {LIMIT} s.")


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
    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(name, end)
    signal.alarm(LIMIT)
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
        programs = venv(*PINS, package=options.package) / "bin"
        address = stack.enter_context(contextlib.nullcontext(options.on) if options.on else host(options.image))
        servers = Servers(address)
        everything = Run(servers, programs, options.seed, quick=options.quick)
        stack.enter_context(small_disk())
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

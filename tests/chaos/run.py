#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break everything between a task that was sent and its result, and count what is lost; stock Celery runs beside it.

One host of ``tests/inventory/chaos.yml`` carries Redis and RabbitMQ, set up by the roles; the workers of both sides
and their clients run here, with the settings of deployed workers. Both sides live through the same faults at the same
moments, each with its own queues in its own database of Redis:

* ours: consumer, transport and guard of celery-hybrid;
* stock: Celery's consumer and kombu's transport, no guard. Its results go to celery-hybrid's backend as well, because
  Celery itself has none that keeps them in RabbitMQ.

Every task notes in files here, which no fault touches, that it runs and that it has its side effect. Lost is what was
sent and has neither run with a readable result, nor is a dead letter, nor is still in Redis when everything is quiet.

    python -m tests.chaos.run [--quick] [--seed N] [--only PHASE]… [--keep] [--write docs/chaos.md]

The seed decides order, kinds and moments of the faults. This fails when our side loses something, begins a task twice
while nobody died, has a side effect twice that the guard should have stopped, keeps a bad message under a wrong reason,
or when a chord does not end as it must with one body.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import random
import runpy
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.chaos.strokes import fill, memory_alarm, standing_still
from tests.support.lab import (
    AMQP_PORT,
    INVENTORIES,
    PACKAGE,
    PINS,
    REDIS_PORT,
    ROOT,
    Client,
    Filter,
    Servers,
    Worker,
    end_in_order,
    host,
    lines_of,
    markdown,
    root,
    say,
    secret,
    small_disk,
    venv,
)

HERE = Path(__file__).resolve().parent
INVENTORY = INVENTORIES / "chaos.yml"
ADDRESS = "10.213.49.13"
CONTAINER = "chaos-debian13"
CACHE = ROOT / ".cache" / "chaos"
# Marks our rules of the packet filter.
COMMENT = "celeryops.hybrid chaos"
WORKERS, PROCESSES = 2, 2
# Seconds after which what a dead worker had is given to others, and for which a claim of the guard holds.
VISIBILITY = 10.0
LEASE = 6.0
# Of phases in which others must take over while a fault lasts.
SHORT = 4.0
# A worker finishes the chord of another one half a minute after that began to.
CHORD_SECONDS = 30.0
# Seconds after a pause within which a process begins the task that it had been given before.
HANDED_SECONDS = 0.5
# systemd's RestartSec of a worker that exits.
RESTART_SECONDS = 2.0
# Numbers of a phase begin at a multiple of this.
NUMBERS = 100_000
# No phase begins later, and nothing may take longer with setting the host up, whatever hangs.
BUDGET, LIMIT = 1260, 1800
# Redis' disk while it is to become full.
DATA, SAVED = "/var/lib/redis", "/var/lib/redis.saved"
STATE_HOME = CACHE / "state"
BOTH, ALONE = ("ours", "stock"), ("ours",)
# Why stock Celery has no part in some phases.
SAME_STORE = "stock Celery has no result store of its own here; it would be celery-hybrid's on both sides"
# A way to RabbitMQ that can be cut; the tests of the package have it.
Proxy: Any = runpy.run_path(str(PACKAGE / "tests" / "integration" / "proxy.py"))["Proxy"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A kind of fault, again and again while tasks are sent.

    Attributes:
        name: for the command line.
        title: in the table.
        faults: names of methods of :class:`Faults`; the dice decide about their order.
        tasks: so many good ones on each side.
        seconds: in which they are sent.
        bad: so many bad ones among them.
        kinds: of the bad ones; none for all kinds.
        chords: so many good chords, with three parts each.
        poison: so many chords that end badly, or have ended others.
        countdown: of every second task, at most, in seconds.
        long: seconds that every tenth task runs for; 0: none does.
        visibility: timeout in seconds.
        sides: that take part.
        why: stock Celery takes no part.
    """

    name: str
    title: str
    faults: tuple[str, ...]
    tasks: int = 750
    seconds: float = 25.0
    bad: int = 0
    kinds: tuple[str, ...] = ()
    chords: int = 0
    poison: int = 0
    countdown: float = 0.0
    long: float = 0.0
    visibility: float = VISIBILITY
    sides: tuple[str, ...] = BOTH
    why: str = ""

    def load(self, first: int) -> dict[str, Any]:
        """Return what a client sends, as it expects it."""
        names = ("tasks", "seconds", "bad", "kinds", "chords", "poison", "countdown", "long")
        return {"first": first, **{name: getattr(self, name) for name in names}}

    @property
    def patience(self) -> float:
        """Seconds without a change after which nothing will happen any more, though something is still to be done."""
        # A claim has run out and was seen overdue twice, then the task's countdown.
        return 2 * self.visibility + LEASE + 5 + (CHORD_SECONDS if self.chords or self.poison else 0)


def held(name: str, title: str, *faults: str, **options: Any) -> Phase:
    """Return a phase in which workers have tasks that have not begun, and some that run."""
    return Phase(name, title, faults, **{"tasks": 300, "countdown": 3.0, "long": 1.0, "visibility": SHORT, **options})


STROKES = ("kill_worker", "restart_redis", "kill_redis", "cut", "half_open", "pause", "memory_alarm", "stop_rabbitmq")
PHASES = (
    Phase("workers", "workers killed -9", ("kill_worker",)),
    Phase("hosts", "hosts switched off and on", ("power_off",), seconds=50.0),
    Phase("redis-restart", "Redis restarted", ("restart_redis",)),
    Phase("redis-kill", "Redis killed -9", ("kill_redis",)),
    Phase("cut", "connections cut", ("cut",)),
    Phase("half-open", "connections half-open", ("half_open",)),
    Phase("pause", "processes paused", ("pause",)),
    Phase("disk", "Redis' disk full", ("fill_disk",)),
    Phase("memory", "RabbitMQ's memory alarm", ("memory_alarm",)),
    Phase("bad", "bad messages", (), bad=96),
    Phase("combined", "combined", STROKES, tasks=2500, seconds=75.0, bad=48),
    held("paused", "workers paused past the timeout", "pause_worker", seconds=20.0),
    held("clock", "Redis' clock jumps", "jump_clock", seconds=15.0),
    held("maxmemory", "Redis at maxmemory", "fill_memory", seconds=20.0),
    held(
        "outbox",
        "outboxes that arrive late",
        "cut_off_host",
        seconds=20.0,
        bad=40,
        kinds=("fails after a retry",),
        visibility=VISIBILITY,
        sides=ALONE,
        why=SAME_STORE,
    ),
    Phase(
        "worker-disk",
        "the workers' disk full",
        ("fill_worker_disk",),
        tasks=300,
        seconds=20.0,
        sides=ALONE,
        why=SAME_STORE,
    ),
    Phase(
        "chords",
        "chords, everything killed",
        ("kill_worker", "kill_redis", "stop_rabbitmq"),
        tasks=300,
        seconds=30.0,
        chords=60,
        sides=ALONE,
        why=SAME_STORE,
    ),
    Phase("poison", "poison chords", (), tasks=200, seconds=15.0, chords=30, poison=24, sides=ALONE, why=SAME_STORE),
    Phase(
        "neighbours",
        "two applications in one vhost",
        ("kill_worker",),
        tasks=200,
        seconds=15.0,
        chords=30,
        sides=("ours", "neighbour"),
        why=SAME_STORE,
    ),
)
QUICK = (
    Phase("workers", "workers killed -9", ("kill_worker",), tasks=150, seconds=8.0),
    Phase("combined", "Redis, RabbitMQ, bad messages", ("kill_redis", "cut", "memory_alarm"), 250, 15.0, bad=25),
    held(
        "paused",
        "worker paused, clock, maxmemory",
        "pause_worker",
        "jump_clock",
        "fill_memory",
        tasks=240,
        seconds=36.0,
    ),
    Phase(
        "neighbours",
        "two applications, poison chords",
        (),
        tasks=80,
        seconds=8.0,
        chords=12,
        poison=8,
        sides=("ours", "neighbour"),
    ),
)


# --- a side ----------------------------------------------------------------------------------------


class Side:
    """The workers of one side.

    Args:
        name: ``ours``, ``neighbour`` (a second application like ours) or ``stock``.
        servers: the host.
        programs: of the virtual environment.
        common: environment of all processes.
        letters: URL of a user who may read dead letters.
    """

    def __init__(self, name: str, servers: Servers, programs: Path, common: dict[str, str], letters: str) -> None:
        self.name = name
        self.notes = CACHE / "notes" / name
        self.notes.mkdir(parents=True)
        self._servers = servers
        self._programs = programs
        self._common = {
            **common,
            "CHAOS_SIDE": name,
            "CHAOS_LETTERS": letters,
            "CHAOS_NOTES": str(self.notes),
            "XDG_STATE_HOME": str(STATE_HOME / name),
        }
        self._environment: dict[str, str] = {}
        self._log = CACHE / f"{name}.log"
        self._ready_before = 0
        self._broker = ("", 0)
        self._died: dict[int, float] = {}
        self._pids: dict[int, int] = {}
        self.workers: list[Worker] = []
        #: Processes that have died, and when.
        self.deaths: list[tuple[int, float]] = []
        #: Processes that were paused, from when, and until when.
        self.pauses: list[tuple[int, float, float]] = []
        #: The way of the first worker to RabbitMQ, where it can be cut.
        self.proxy: Any = None

    @property
    def database(self) -> int:
        """Number of its database in Redis."""
        return self._broker[1]

    def start(self, number: int, queue: str, visibility: float, *, apart: bool = False) -> None:
        """Start the workers of a phase.

        Args:
            number: of the phase.
            queue: of all tasks.
            visibility: timeout in seconds.
            apart: let the first one be on a host of its own, which can be cut off from RabbitMQ.
        """
        self._common.update(CHAOS_QUEUE=queue, CHAOS_VISIBILITY=str(visibility))
        # A bad message that stays at the head of a queue of stock Celery would spoil all later phases.
        self._broker = {"ours": ("celery", 0), "neighbour": ("stock", 15)}.get(self.name, ("stock", 1 + number % 14))
        self.deaths.clear()
        self.pauses.clear()
        environment = {**self._common, **self._servers.environment("worker", *self._broker)}
        log = self._log
        self._ready_before = self._ready()
        if apart:
            self.proxy = Proxy(self._servers.address, int(AMQP_PORT))
        for place in range(WORKERS):
            options = ["--pool=prefork", f"--concurrency={PROCESSES}", f"--hostname={self.name}{place}@chaos"]
            command = [
                "--app=tests.chaos.chaos_app",
                "worker",
                *options,
                "--loglevel=INFO",
                "--without-mingle",
                "--without-gossip",
            ]
            own = {**environment, **(self._apart(environment) if self.proxy and place == 0 else {})}
            self.workers.append(Worker([self._programs / "celery", *command], own, log, HERE))
        self.ensure()

    def _ready(self) -> int:
        """Return how often a worker said that it is ready."""
        return self._log.read_text().count("@chaos ready.") if self._log.exists() else 0

    def is_ready(self) -> bool:
        """Return whether all workers of this phase have become ready."""
        return self._ready() - self._ready_before >= WORKERS

    def _apart(self, environment: dict[str, str]) -> dict[str, str]:
        """Return the settings of a worker on a host of its own."""
        login = environment["CHAOS_RESULTS"].rpartition("@")[0]
        url = f"{login}@127.0.0.1:{self.proxy.port}/celery"
        return {"CHAOS_RESULTS": url, "XDG_STATE_HOME": f"{environment['XDG_STATE_HOME']}/apart"}

    def ensure(self) -> None:
        """Start those again that have ended, after a while, as systemd does."""
        for place, worker in enumerate(self.workers):
            now = time.monotonic()
            if worker.pid:
                self._died.pop(place, None)
                self._pids[place] = worker.pid
                continue
            if pid := self._pids.pop(place, 0):
                self.deaths.append((pid, time.time()))
            if worker.starts == 0 or now > self._died.setdefault(place, now) + RESTART_SECONDS:
                worker.ensure()
                self._pids[place] = worker.pid

    def client(self, *arguments: Any) -> Client:
        """Start a client."""
        program = (self._programs / "python", "-m", "tests.chaos.client")
        environment = {
            **self._common,
            **self._servers.environment("client", *self._broker),
            "CHAOS_CLIENT": "1",
            "CHAOS_LOOK": self._servers.environment("client", "stock", self._broker[1])["CHAOS_BROKER"],
        }
        return Client(program, environment, CACHE / f"{self.name}-client.log", *arguments)

    def close(self) -> int:
        """End the workers; return how often they were started again."""
        again = sum(worker.starts - 1 for worker in self.workers)
        for worker in self.workers:
            # One that is paused does not hear anything else.
            send(worker.pid, signal.SIGCONT)
            worker.close()
        self.workers.clear()
        self._pids.clear()
        if self.proxy:
            self.proxy.stop()
            self.proxy = None
        return again


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to one of our processes, if it is still there."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


# --- the faults ------------------------------------------------------------------------------------


class Faults:
    """The faults, for both sides at the same moment; each leaves everything as it was, whatever happens.

    Args:
        servers: the host.
        sides: whose workers there are.
        dice: decide.
    """

    def __init__(self, servers: Servers, sides: Sequence[Side], dice: random.Random) -> None:
        self.servers = servers
        self.sides = sides
        self.dice = dice
        self.filter = Filter(servers.address, COMMENT, REDIS_PORT, AMQP_PORT)
        self.filter_results = Filter(servers.address, f"{COMMENT} results", AMQP_PORT)
        self.visibility = VISIBILITY
        #: From when to when Redis was away.
        self.redis_away: list[tuple[float, float]] = []

    @property
    def takeover(self) -> float:
        """Seconds after which another worker has what a silent one had."""
        # It is seen overdue twice, a grace apart; each look is up to five seconds late.
        return 2 * self.visibility + 5

    @contextlib.contextmanager
    def without_redis(self) -> Iterator[None]:
        """Remember that Redis dies in here; it does so some time after the command."""
        begun = time.time()
        try:
            yield
        finally:
            self.redis_away.append((begun, time.time()))

    def redis_cli(self, *words: str, database: int = 0) -> str:
        """Let Redis do something, with all rights."""
        command = shlex.join(("redis-cli", "-e", "--user", "stock", "-n", str(database), *words))
        return self.servers.shell(
            f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; {command}", stdin=unquote(secret("redis_stock"))
        )

    def hold(self, seconds: float) -> None:
        """Let time pass; workers that have ended are started again."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.ensure()
            time.sleep(min(0.3, left))

    def ensure(self) -> None:
        """Start workers again that have ended."""
        for side in self.sides:
            side.ensure()

    def wait_for_servers(self) -> None:
        """Wait until both servers answer."""
        self.servers.shell("systemctl start redis-server rabbitmq-server && rabbitmqctl -q await_startup")

    def between(self, least: float, most: float) -> None:
        """Let some time pass."""
        self.hold(self.dice.uniform(least, most))

    # each of these is one stroke

    def kill_worker(self) -> None:
        """A worker is killed: all of it, as when its host loses power; the main process; or a process of the pool."""
        place, what = self.dice.randrange(WORKERS), self.dice.choice(("all", "main", "child"))
        child = self.dice.randrange(PROCESSES)
        for side in self.sides:
            worker = side.workers[place]
            if what == "all":
                worker.kill()
            elif what == "main":
                send(worker.pid, signal.SIGKILL)
            elif len(children := worker.children()) > child:
                side.deaths.append((children[child], time.time()))
                send(children[child], signal.SIGKILL)
        self.between(2, 4)

    def power_off(self) -> None:
        """The servers' host is switched off and on; half of the time a worker's host as well."""
        workers = self.dice.random() < 0.5
        with self.without_redis():
            try:
                root("podman", "kill", CONTAINER)
                if workers:
                    for side in self.sides:
                        side.workers[0].kill()
                self.between(1, 3)
            finally:
                root("podman", "start", CONTAINER)
                self.until_ssh()
                self.wait_for_servers()
        self.between(5, 8)

    def until_ssh(self) -> None:
        """Wait until the host lets us in."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(SystemExit):
                self.servers.shell("true")
                return
            self.hold(0.3)
        raise SystemExit(f"{ADDRESS} does not answer.")

    def restart_redis(self) -> None:
        """Redis is restarted, as with an update, or stopped for a while."""
        with self.without_redis():
            if self.dice.random() < 0.5:
                self.servers.shell("systemctl restart redis-server")
            else:
                try:
                    self.servers.shell("systemctl stop redis-server")
                    self.between(1, 5)
                finally:
                    self.servers.shell("systemctl start redis-server")
        self.between(4, 7)

    def kill_redis(self) -> None:
        """Redis is killed; systemd starts it again."""
        with self.without_redis():
            self.servers.shell("systemctl kill --signal=KILL redis-server")
            self.between(0, 3)
            # Without this systemd would give up in the end.
            self.servers.shell("systemctl reset-failed redis-server; systemctl start redis-server")
        self.between(3, 6)

    def cut(self) -> None:
        """Nothing comes through between the workers and the servers."""
        with self.filter.dropping(both=True):
            self.between(3, 7)
        self.between(4, 7)

    def half_open(self) -> None:
        """The servers hear the workers, and the workers hear nothing; half of the time Redis is restarted meanwhile."""
        restarted = self.dice.random() < 0.5
        with self.filter.dropping(both=False):
            self.between(1, 3)
            if restarted:
                # The end of the connections is not heard here either.
                with self.without_redis():
                    self.servers.shell("systemctl restart redis-server")
            self.between(2, 5)
        self.between(4, 7)

    def pause(self) -> None:
        """Redis, RabbitMQ, a worker or a process of its pool stands still, a worker longer than others wait for it."""
        what = self.dice.choice(("redis-server", "beam.smp", "main", "child"))
        seconds = VISIBILITY + 3 if what == "main" else self.dice.uniform(2, 7)
        place = self.dice.randrange(WORKERS)
        if what in ("main", "child"):
            workers = [side.workers[place] for side in self.sides]
            pids = [pid for worker in workers for pid in ([worker.pid] if what == "main" else worker.children()[:1])]
            try:
                for pid in pids:
                    send(pid, signal.SIGSTOP)
                self.hold(seconds)
            finally:
                for pid in pids:
                    send(pid, signal.SIGCONT)
        else:
            with standing_still(self.servers, what):
                self.hold(seconds)
        self.between(2, 4)

    def pause_worker(self) -> None:
        """A worker stands still with all its processes, as its virtual machine does, until another has what it had."""
        place = self.dice.randrange(WORKERS)
        pids = {side: [side.workers[place].pid, *side.workers[place].children()] for side in self.sides}
        begun = time.time()
        try:
            for pid in itertools.chain(*pids.values()):
                send(pid, signal.SIGSTOP)
            self.hold(self.takeover)
        finally:
            for pid in itertools.chain(*pids.values()):
                send(pid, signal.SIGCONT)
            for side, paused in pids.items():
                side.pauses += [(pid, begun, time.time()) for pid in paused]
        self.between(2, 4)

    def jump_clock(self) -> None:
        """The clock of Redis' host jumps a quarter of an hour ahead, five times: all claims look overdue."""
        script = (
            "for _, name in ipairs(redis.call('zrange', KEYS[1], 0, -1)) do "
            "redis.call('zincrby', KEYS[1], -900, name) end"
        )
        for _ in range(5):
            for side in self.sides:
                self.redis_cli("eval", script, "1", "unacked_index", database=side.database)
            self.hold(1.5)
        self.between(1, 2)

    def fill_memory(self) -> None:
        """Redis is at maxmemory for longer than the visibility timeout: it refuses what needs memory."""
        try:
            self.redis_cli("config", "set", "maxmemory", "1")
            self.hold(self.takeover)
        finally:
            self.redis_cli("config", "set", "maxmemory", "0")
        self.between(3, 5)

    def cut_off_host(self) -> None:
        """The host of a worker does not reach RabbitMQ; what it has stored meanwhile arrives behind that of others."""
        proxies = [side.proxy for side in self.sides]
        try:
            for proxy in proxies:
                proxy.cut()
            self.between(4, 7)
        finally:
            for proxy in proxies:
                proxy.heal()
        self.between(2, 4)

    def fill_worker_disk(self) -> None:
        """RabbitMQ is away, the disk with the outboxes is filled, RabbitMQ comes back, and then there is room again."""
        filler = STATE_HOME / "others"
        try:
            with self.filter_results.dropping(both=True):
                self.between(2, 4)
                fill(filler)
                self.between(2, 4)
            self.between(3, 5)
        finally:
            filler.unlink(missing_ok=True)
        self.between(2, 4)

    def memory_alarm(self) -> None:
        """RabbitMQ's memory alarm goes off."""
        with memory_alarm(self.servers):
            self.between(4, 8)
        self.between(2, 4)

    def stop_rabbitmq(self) -> None:
        """RabbitMQ is killed, and stays away for a while."""
        try:
            self.servers.shell("systemctl kill --signal=KILL rabbitmq-server")
            self.between(1, 3)
        finally:
            self.wait_for_servers()
        self.between(2, 4)

    def fill_disk(self) -> None:
        """Others fill Redis' disk to the last byte: it refuses to write, and goes on when there is room again."""
        try:
            self.servers.shell(f"dd if=/dev/zero of={DATA}/others bs=4k >/dev/null 2>&1 || true")
            self.between(4, 7)
        finally:
            self.servers.shell(
                f"rm -f {DATA}/others; systemctl reset-failed redis-server; systemctl start redis-server"
            )
        self.between(4, 7)

    @contextlib.contextmanager
    def small_disk(self) -> Iterator[None]:
        """Move Redis' data to a disk that is easily filled; what it has then goes back."""
        # Not over SSH: root of a container may not mount.
        inside = ("podman", "inspect", "--format={{.State.Pid}}", CONTAINER)
        pid = root_output(*inside)

        def mount(*arguments: str) -> None:
            root("nsenter", "--target", pid, "--mount", "--pid", *arguments)

        self.servers.shell(f"systemctl stop redis-server; rm -rf {SAVED}; cp -a {DATA} {SAVED}")
        size = 64 + int(self.servers.shell(f"du -sm {SAVED} | cut -f 1"))
        mount("mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", DATA)
        try:
            self.servers.shell(f"cp -a {SAVED}/. {DATA}/; chown redis:redis {DATA}; systemctl start redis-server")
            # With 'always' it would just end. So it says no to whatever writes, and goes on.
            self.redis_cli("config", "set", "appendfsync", "everysec")
            yield
        finally:
            self.servers.shell(
                f"rm -f {DATA}/others; systemctl stop redis-server; rm -rf {SAVED}; cp -a {DATA} {SAVED}"
            )
            mount("umount", DATA)
            self.servers.shell(
                f"rm -rf {DATA}/appendonlydir; cp -a {SAVED}/. {DATA}/; rm -rf {SAVED}; "
                "systemctl reset-failed redis-server; systemctl start redis-server"
            )


# --- counting --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """What became of the tasks of a phase on one side; ``bad_…`` counts bad messages."""

    title: str
    side: str
    sent: int
    refused: int
    executed: int
    twice: int
    stood: int
    alone: int
    effects: int
    again: int
    through: int
    readable: int
    letters: int
    in_redis: int
    lost: int
    bad: int
    bad_kept: int
    bad_lost: int
    starts: int
    chords: int
    ended: int
    bodies: int
    extra: int
    foreign: int
    faults: list[str] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Return whether our side has failed."""
        return bool(self.faults)


# (attribute of a row, heading, what it is)
COLUMNS = (
    ("sent", "sent", "good tasks for which delay() returned"),
    ("refused", "refused", "delay() raised: the caller knows, and did not send it again"),
    ("executed", "executed", "different ones of those sent"),
    ("twice", "twice", "begun more than once: a worker was lost, or the task itself retried while Redis was away"),
    (
        "stood",
        "stood",
        "begun again because the first run was in a worker that was paused for too long: no claim stops what runs",
    ),
    (
        "alone",
        "alone",
        "begun again though nobody (worker, process, Redis) died or stood since it was sent, and no run asked for it",
    ),
    ("effects", "effects", "tasks with a side effect"),
    ("again", "again", "side effects beyond the first of a task, as the outside world sees them without its own key"),
    (
        "through",
        "through",
        "of these, past a receipt or a claim of the guard; the others: the run before died, or stood too long",
    ),
    ("readable", "readable", "right results, read by a fresh process"),
    ("letters", "letters", "good tasks that are dead letters"),
    (
        "in_redis",
        "in Redis",
        "not done when nothing moved any more; a message that ends workers holds others up",
    ),
    ("lost", "lost", "sent; and no result, no dead letter, not in Redis"),
    ("bad", "bad", "bad messages sent"),
    ("bad_kept", "kept", "of these, as dead letters with the right reason"),
    ("bad_lost", "gone", "of these, with no dead letter, no result that says so, and not in Redis"),
    ("starts", "starts", "workers that had ended and were started again, or were killed"),
)
CHORD_COLUMNS = (
    ("chords", "chords", "sent"),
    ("ended", "ended", "of these, with a body in the state that it must end in"),
    ("bodies", "bodies", "that have run, of chords that succeed; others have none to run"),
    ("extra", "extra", "bodies beyond one of a chord, though nobody died while one ran; bodies of chords that fail"),
    ("foreign", "foreign", "bodies that another application of the vhost has run"),
)


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of a task: what is the same when it is begun again, the processes, and from when to when.

    ``again``: it ended by asking for another run, because Redis did not do what it needed.
    """

    number: int
    retries: int
    pid: int
    parent: int
    begun: float
    ended: float
    again: bool


def spans(side: Side, what: str, numbers: range) -> list[Span]:
    """Return the runs of a phase that a file notes; one without an end has died."""
    ends: dict[tuple[str, ...], list[tuple[float, str]]] = {}
    for *run, at, how in lines_of(side.notes / "ended"):
        ends.setdefault(tuple(run), []).append((float(at), how))
    found = []
    for number, retries, pid, parent, at in lines_of(side.notes / what):
        # Stock runs some of the bad messages, which have a marker instead of a number.
        if number.isdigit() and int(number) in numbers:
            begun = float(at)
            later = [end for end in ends.get((number, retries, pid), ()) if end[0] >= begun]
            ended, how = min(later, default=(float("inf"), ""))
            found.append(Span(int(number), int(retries), int(pid), int(parent), begun, ended, how == "again"))
    return sorted(found, key=lambda run: run.begun)


def repeated(
    side: Side, redis_away: Sequence[tuple[float, float]], runs: Sequence[Span], sent: dict[int, float]
) -> tuple[list[int], list[int]]:
    """Return the numbers of what was begun again: because the first run stood; and although nobody died or stood.

    Args:
        side: whose workers these are.
        redis_away: from when to when it was. A sender that does not hear from it sends again: two messages.
        runs: in the order in which they began.
        sent: when each number was sent.
    """
    stood, alone = [], []
    latest: dict[tuple[int, int], Span] = {}
    for run in runs:
        before = latest.get((run.number, run.retries))
        latest[run.number, run.retries] = run
        if before is None:
            continue
        processes = (before.pid, before.parent)
        died = any(before.begun <= at <= run.begun for pid, at in side.deaths if pid in processes)
        since = sent.get(run.number, before.begun)
        died |= any(begun <= run.begun and end >= since for begun, end in redis_away)
        held = any(
            pid in processes and begun <= before.ended and end >= before.begun for pid, begun, end in side.pauses
        )
        # A process that is paused between its order to run a task and the first line of it notes the run afterwards.
        held |= any(pid == run.pid and end <= run.begun <= end + HANDED_SECONDS for pid, _, end in side.pauses)
        if held:
            stood.append(run.number)
        elif not died and not before.again:
            alone.append(run.number)
    return stood, alone


def count(
    title: str,
    side: Side,
    redis_away: Sequence[tuple[float, float]],
    numbers: range,
    sent: dict[str, Any],
    seen: dict[str, Any],
    starts: int,
) -> Row:
    """Count what became of the tasks of a phase."""

    def notes(name: str) -> list[tuple[int, list[str]]]:
        # Stock runs some of the bad messages, which have a marker instead of a number.
        lines = (line for line in lines_of(side.notes / name) if line[0].isdigit())
        return [(int(line[0]), line[1:]) for line in lines if int(line[0]) in numbers]

    sent_at = {number: float(at) for number, (at,) in notes("sent")}
    good = set(sent_at)
    runs = Counter(number for number, _ in notes("executed"))
    letters = dict(notes("letters"))
    right, left = set(seen["right"]), set(seen["left"])
    acts: dict[int, list[tuple[float, float]]] = {}
    for number, (claimed, at) in notes("acts"):
        acts.setdefault(number, []).append((float(claimed), float(at)))
    receipts: dict[int, float] = {}
    for number, (at,) in notes("receipts"):
        receipts.setdefault(number, float(at))
    lost = good - right - letters.keys() - left
    through = [
        number
        for number, each in acts.items()
        for (claimed, _), (_, at) in zip(sorted(each), sorted(each)[1:], strict=False)
        if at < claimed + LEASE or at > receipts.get(number, at)
    ]
    bad = {number: words[0] for number, words in notes("sent-bad")}
    kind_of = {number: " ".join(words[1:]) for number, words in notes("sent-bad")}
    kept = {number for number in bad if number in letters and letters[number][0] == bad[number]}
    gone = bad.keys() - letters.keys() - left - set(seen["told"])
    stood, alone = repeated(side, redis_away, spans(side, "executed", numbers), sent_at)
    chords = dict(notes("sent-chord"))
    open_chords = [number for number, (state, *_) in chords.items() if seen["chords"].get(str(number)) != state]
    bodies = spans(side, "bodies", numbers)
    extra = repeated(side, redis_away, bodies, {})[1]
    extra += [body.number for body in bodies if chords.get(body.number, [""])[0] != "SUCCESS"]
    foreign = [number for number, _ in notes("foreign")]
    row = Row(
        title,
        side.name,
        sent=len(good),
        refused=sent.get("refused", 0),
        executed=len(good & runs.keys()),
        twice=sum(runs[number] > 1 for number in good),
        stood=len(stood),
        alone=len(alone),
        effects=len(good & acts.keys()),
        again=sum(len(each) - 1 for each in acts.values()),
        through=len(through) if side.name != "stock" else 0,
        readable=len(right),
        letters=len(good & letters.keys()),
        in_redis=len(left),
        lost=len(lost),
        bad=len(bad),
        bad_kept=len(kept),
        bad_lost=len(gone),
        starts=starts,
        chords=len(chords),
        ended=len(chords) - len(open_chords),
        bodies=len({body.number for body in bodies}),
        extra=len(extra),
        foreign=len(foreign),
    )
    if side.name != "stock":
        without = {number for number in good - acts.keys() if number not in letters}
        for what, those in (
            ("lost", lost),
            ("without their side effect", without),
            ("with a side effect past the guard", set(through)),
            ("with a wrong result", set(seen["wrong"]) - letters.keys()),
            ("still in Redis", left),
            ("still in the outbox", set(range(seen["outbox"]))),
            ("begun twice while nobody died", alone),
            ("without a final state", seen["unfinished"]),
            ("chords not ended as they must", open_chords),
            ("with a body too many", extra),
            ("with a body run by another application", foreign),
        ):
            if those:
                row.faults.append(f"{len(those)} {what}: {sorted(those)[:10]}")
        for number in sorted(bad.keys() - kept)[:10]:
            row.faults.append(f"{number}, {kind_of[number]}: {letters.get(number)} instead of {bad[number]}")
    else:
        say(f"stock lost {sorted(lost)[:10]}; gone: {sorted({kind_of[number] for number in gone})}")
    for number in sorted(good & letters.keys())[:5]:
        say(f"{side.name}: {number} is a dead letter, {letters[number]}")
    return row


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> str:
    """Return a table, and the sums in its last lines."""
    cells = [["phase", "side", *(label for _, label, _ in columns)]]
    cells += [[row.title, row.side, *(str(getattr(row, name)) for name, *_ in columns)] for row in rows]
    for side in dict.fromkeys(row.side for row in rows):
        of_side = [row for row in rows if row.side == side]
        cells.append(["all", side, *(str(sum(getattr(row, name) for row in of_side)) for name, *_ in columns)])
    return markdown(cells)


def summary(rows: Sequence[Row], side: str) -> str:
    """Return in a sentence how a side has fared."""

    def total(name: str) -> int:
        return sum(getattr(row, name) for row in rows if row.side == side)

    lost = f"lost {total('lost')} of {total('sent')} good tasks and {total('bad_lost')} of {total('bad')} bad ones"
    again = f"left {total('in_redis')} in Redis undone, and repeated {total('again')} side effects"
    begun = f"began {total('alone')} twice while nobody died"
    if side == "stock":
        return f"**{side}** {lost}, {begun}, {again}."
    chords = f"Of {total('chords')} chords {total('ended')} ended, with {total('extra')} bodies too many"
    elsewhere = f"and {total('foreign')} in another application"
    return f"**{side}** {lost}, {begun}, {again}, {total('through')} of them past the guard. {chords}, {elsewhere}."


def report(rows: Sequence[Row], strokes: Counter[str], conditions: Sequence[str], skipped: Sequence[str]) -> str:
    """Return the table with what has to be known about it.

    Args:
        rows: of all phases.
        strokes: how often there was each fault.
        conditions: of the run, in sentences.
        skipped: titles of phases for which there was no time.
    """
    with_chords = [row for row in rows if row.chords]
    apart = [phase for phase in PHASES if phase.why and phase.title in {row.title for row in rows}]
    lines = [
        "# What is lost when everything breaks",
        "",
        *(f"* {summary(rows, side)}" for side in dict.fromkeys(row.side for row in rows)),
        "",
        *conditions,
        "",
        "Both sides live through the same faults at the same moments, with the settings of deployed workers and a",
        f"visibility timeout of {VISIBILITY:.0f} s ({SHORT:.0f} s where others must take over while a fault lasts).",
        "**ours**: consumer, transport and guard of celery-hybrid. **neighbour**: a second application like ours, in",
        "the same vhost, with queues of the same name in another database of Redis.",
        "**stock**: Celery's own consumer and kombu's transport, no guard. Its results go to celery-hybrid's backend",
        "too, because Celery has none that keeps them in RabbitMQ. Redis has appendfsync always, so what it has",
        "confirmed is on its disk.",
        "",
        table(rows, COLUMNS),
        "",
        *(f"* **{label}**: {what}" for _, label, what in COLUMNS),
        *(["", "Chords:", "", table(with_chords, CHORD_COLUMNS), ""] if with_chords else []),
        *(f"* **{label}**: {what}" for _, label, what in CHORD_COLUMNS if with_chords),
        *([""] if apart else []),
        *(f"* {phase.title}: without stock, because {phase.why}." for phase in apart),
        "",
        "The faults, while tasks are sent:",
        "",
        *(
            f"* **{name.replace('_', ' ')}** ({times} x): {getattr(Faults, name).__doc__}"
            for name, times in sorted(strokes.items())
        ),
    ]
    if skipped:
        lines += ["", f"There was no time for: {', '.join(skipped)}."]
    return "\n".join(lines) + "\n"


# --- the run ---------------------------------------------------------------------------------------


class Run:
    """All phases, one after the other.

    Args:
        faults: that there are.
        sides: that may take part, by name.
        seed: decides.
    """

    def __init__(self, faults: Faults, sides: dict[str, Side], seed: int) -> None:
        self.faults = faults
        self.sides = sides
        self.seed = seed
        self.strokes: Counter[str] = Counter()

    def phase(self, number: int, phase: Phase) -> list[Row]:
        """Run one phase."""
        # Not one for all phases: a phase alone shall do what it does among others.
        self.faults.dice = random.Random(f"{self.seed}/{phase.name}")  # noqa: S311
        self.faults.sides = sides = [self.sides[name] for name in phase.sides if name in self.sides]
        self.faults.visibility = phase.visibility
        self.faults.redis_away.clear()
        first, queue = number * NUMBERS + 1, f"chaos-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as stack:
            if "fill_worker_disk" in phase.faults:
                stack.enter_context(small_disk(STATE_HOME))
            for side in sides:
                stack.callback(side.close)
                side.start(number, queue, phase.visibility, apart="cut_off_host" in phase.faults)
            if "fill_disk" in phase.faults:
                stack.enter_context(self.faults.small_disk())
            self.wait_until_ready()
            senders = self.clients(stack, "send", phase.load(first))
            self.wait_for(first)
            begun = time.monotonic()
            strokes: Counter[str] = Counter()
            turns = self.turns(phase)
            while any(sender.running() for sender in senders) or len(strokes) < len(phase.faults):
                if phase.faults and (time.monotonic() < begun + 2 * phase.seconds or len(strokes) < len(phase.faults)):
                    stroke = next(turns)
                    strokes[stroke] += 1
                    getattr(self.faults, stroke)()
                else:
                    self.faults.hold(0.5)
            sent = [sender.answer()[0] for sender in senders]
            numbers = [range(first, each["next"]) for each in sent]
            counting = time.monotonic()
            readers = [
                stack.enter_context(contextlib.closing(side.client("count", first, each["next"], phase.patience)))
                for side, each in zip(sides, sent, strict=True)
            ]
            while any(reader.running() for reader in readers):
                self.faults.hold(0.5)
            seen = [reader.answer()[0] for reader in readers]
            starts = [side.close() for side in sides]
        self.strokes += strokes
        made = ", ".join(f"{times} times {name.replace('_', ' ')}" for name, times in strokes.items())
        quiet = " and ".join(f"{each['seconds']:.0f} s" for each in seen)
        say(f"  {made or 'no faults'}; sent in {counting - begun:.0f} s, quiet {quiet} later")
        rows = [
            count(phase.title, side, self.faults.redis_away, *of_side)
            for side, of_side in zip(sides, zip(numbers, sent, seen, starts, strict=True), strict=True)
        ]
        for row in rows:
            for fault in row.faults:
                say(f"  {row.side}: {fault}")
        return rows

    def turns(self, phase: Phase) -> Iterator[str]:
        """Return the faults of a phase, all of them before one comes again, each time in another order."""
        while phase.faults:
            yield from self.faults.dice.sample(phase.faults, len(phase.faults))

    def wait_until_ready(self) -> None:
        """Wait until all workers are there: a fault that meets one that has nothing yet shows nothing."""
        end = time.monotonic() + 60
        while not all(side.is_ready() for side in self.faults.sides):
            if time.monotonic() > end:
                raise SystemExit(f"The workers do not become ready; see their logs in {CACHE}.")
            self.faults.hold(0.2)

    def wait_for(self, first: int) -> None:
        """Wait until the workers of each side are at work; those that have just started would be no match."""
        end = time.monotonic() + 60
        for side in self.faults.sides:
            while not any(line[0].isdigit() and int(line[0]) >= first for line in lines_of(side.notes / "executed")):
                if time.monotonic() > end:
                    raise SystemExit(f"No task runs; see {CACHE / side.name}.log.")
                self.faults.hold(0.2)

    def clients(self, stack: contextlib.ExitStack, *arguments: Any) -> list[Client]:
        """Start a client of each side."""
        return [stack.enter_context(contextlib.closing(side.client(*arguments))) for side in self.faults.sides]


def root_output(*command: str) -> str:
    """Run a command of this machine as root and return what it says."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    return subprocess.run([*sudo, *command], capture_output=True, text=True, check=True).stdout.strip()


def letters_url(servers: Servers) -> str:
    """Make a user who may read dead letters, and return its URL."""
    password = secrets.token_hex(16)
    servers.shell(
        f"rabbitmqctl -q delete_user chaos >/dev/null 2>&1; rabbitmqctl -q add_user chaos {password} && "
        "rabbitmqctl -q set_permissions -p celery chaos '^$' '^$' '^celery[.]dead_letters$' && "
        "rabbitmqctl -q purge_queue -p celery celery.dead_letters"
    )
    return f"amqp://chaos:{password}@{servers.address}:{AMQP_PORT}/celery"


def main() -> int:
    """Run the phases and print the table."""
    parser = argparse.ArgumentParser(description="Break everything, and count what is lost; stock Celery beside it.")
    parser.add_argument("--quick", action="store_true", help="four short phases, our side only; for 'make test'")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="makes the same faults at the same moments")
    parser.add_argument("--only", action="append", choices=[phase.name for phase in PHASES], help="only this phase")
    parser.add_argument("--side", choices=BOTH, help="only this side")
    parser.add_argument("--keep", action="store_true", help="let the host run, for another run with --again")
    parser.add_argument("--again", action="store_true", help="the host runs and is set up; it stays")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table into a file too")
    options = parser.parse_args()
    end_in_order(LIMIT)
    phases = [phase for phase in (QUICK if options.quick else PHASES) if phase.name in (options.only or [phase.name])]
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in (CACHE / "notes", CACHE / "state"):
        shutil.rmtree(old, ignore_errors=True)
    for log in CACHE.glob("*.log"):
        log.unlink()
    rows: list[Row] = []
    skipped: list[str] = []
    with contextlib.ExitStack() as stack:
        programs = venv(CACHE / "venv", *PINS, package=PACKAGE) / "bin"
        if not options.again:
            stack.enter_context(host(INVENTORY, CACHE / "site.log", keep=options.keep))
        servers = Servers(ADDRESS)
        common = {
            **os.environ,
            "CHAOS_SEED": f"{options.seed}{secrets.randbelow(10**6):06}",
            "CHAOS_OPTIONS": "{}",
            "PYTHONPATH": str(ROOT),
        }
        common.pop("STATE_DIRECTORY", None)
        names = ["stock"] if options.side == "stock" else ["ours", "neighbour"]
        names += ["stock"] if not options.side and not options.quick else []
        letters = letters_url(servers)
        sides = {name: Side(name, servers, programs, common, letters) for name in names}
        faults = Faults(servers, [], random.Random(options.seed))  # noqa: S311
        for rules in (faults.filter, faults.filter_results):
            stack.callback(rules.clear)
            rules.clear()
        versions = servers.versions()
        run = Run(faults, sides, options.seed)
        begun = time.monotonic()
        if not options.quick:
            faults.dice.shuffle(phases)
        try:
            for phase in phases:
                if time.monotonic() > begun + BUDGET:
                    skipped.append(phase.title)
                    continue
                say(f"{phase.title} …")
                rows += run.phase(PHASES.index(next(each for each in PHASES if each.name == phase.name)), phase)
        finally:
            seconds = time.monotonic() - begun
            conditions = (
                f"`make chaos CHAOS='--seed {options.seed}'`: {seconds:.0f} s, on {os.cpu_count()} cores",
                f"that all servers, workers and clients share (load {os.getloadavg()[2]:.0f}).",
                f"{versions}; {', '.join(PINS)}.",
            )
            text = report(rows, run.strokes, conditions, skipped)
            print(text, flush=True)
            if options.write:
                options.write.write_text(text)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())

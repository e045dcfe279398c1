#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the result backend beside its rivals, in one run on one machine.

One host of ``tests/inventory/bench.yml`` carries Redis and RabbitMQ, set up by the roles. Both sides of a pair take
turns, so that whatever else the machine does meets both; what counts is the ratio. No figure makes this fail.

    python -m tests.bench.run [--quick] [--image debian12] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.report import Report
from tests.support import lab
from tests.support.lab import INVENTORIES, PACKAGE, PINS, ROOT, STATE, host, say, secret, venv

HERE = Path(__file__).resolve().parent
# Debian release: (inventory, address of its only host). RabbitMQ 3.10 is on Debian 12, 4.0 on Debian 13.
HOSTS = {"debian13": ("bench.yml", "10.213.22.13"), "debian12": ("bench_on_debian12.yml", "10.213.22.12")}
CACHE = ROOT / ".cache" / "bench"
QUEUE_PER_TASK = "celery-amqp-backend==1.2.0"

# The two that are compared in everything.
PAIR = ("hybrid", "redis")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        patience: seconds after which a case begins no further round, so that a busy machine finishes in bounded time.
        idle: seconds.
        live: results that are kept while others look.
        processes: that look.
        queues: results that have a queue each.
        canvases: chains and chords, with an empty and with a full archive.
        full: results in the full one.
    """

    patience: float = 100.0
    store_rounds: int = 40
    stores: int = 200
    task_rounds: int = 5
    tasks: int = 1000
    trip_rounds: int = 5
    trips: int = 100
    live: int = 100_000
    processes: int = 3
    look_ups: int = 200
    idle: float = 30.0
    queues: int = 2000
    canvases: int = 20
    full: int = 1_000_000


QUICK = Size(
    patience=15,
    store_rounds=15,
    task_rounds=2,
    tasks=250,
    trip_rounds=2,
    live=20_000,
    processes=1,
    idle=10.0,
    queues=200,
    canvases=5,
    full=100_000,
)


@dataclasses.dataclass(frozen=True)
class Side:
    """A result backend together with the broker that it goes with.

    Attributes:
        name: of queue, files and processes.
        label: in the report.
        broker: URL.
        results: URL.
        venv: with what it needs.
        worker_results: URL for its worker when that has other rights.
    """

    name: str
    label: str
    broker: str
    results: str
    venv: Path
    worker_results: str = ""

    def environment(self, *, worker: bool = False) -> dict[str, str]:
        """Return what its processes find in their environment; addresses hold passwords, so they are not arguments."""
        return {
            **os.environ,
            "BENCH_BROKER": self.broker,
            "BENCH_RESULTS": (worker and self.worker_results) or self.results,
            "BENCH_QUEUE": f"bench-{self.name}",
            "PYTHONPATH": str(ROOT),
        }


class SideError(Exception):
    """A side cannot do what is measured; the message is for the report."""


class Probe:
    """A client process of a side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        with (CACHE / f"{side.name}-client.log").open("a") as log:
            self._process = subprocess.Popen(
                [side.venv / "bin" / "python", "-m", "tests.bench.probe"],
                env=side.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __call__(self, command: str, *arguments: Any) -> Any:
        """Let it measure something and return the answer.

        Raises:
            SideError: it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([command, *arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer = json.loads(line or '{"error": "the client process ended"}')
        if "error" in answer:
            raise SideError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()


class Worker:
    """A worker of a side: prefork, two children."""

    def __init__(self, side: Side) -> None:
        command = [
            "--app=tests.bench.bench_app",
            "worker",
            f"--queues=bench-{side.name}",
            f"--hostname={side.name}@bench",
        ]
        with (CACHE / f"{side.name}-worker.log").open("a") as log:
            self._process = subprocess.Popen(
                [side.venv / "bin" / "celery", *command, "--pool=prefork", "--concurrency=2", "--loglevel=WARNING"],
                env=side.environment(worker=True),
                cwd=HERE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        """Process ids: of the main process, then of its children."""
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            # It waits for a task that does not end; its children are in its group.
            os.killpg(self._process.pid, signal.SIGKILL)


class Servers(lab.Servers):
    """The host with Redis and RabbitMQ."""

    def throw_away_vhost(self) -> str:
        """Make a vhost and a user for the sides whose broker is RabbitMQ; return the URL."""
        password = secrets.token_urlsafe(24)
        self.shell(
            "exec >/dev/null 2>&1; rabbitmqctl delete_user bench; rabbitmqctl delete_vhost bench; set -e;"
            "rabbitmqctl add_vhost bench; rabbitmqctl add_user bench;"
            "rabbitmqctl set_permissions -p bench bench '.*' '.*' '.*'",
            stdin=f"{password}\n",
        )
        return f"amqp://bench:{password}@{self.address}:5672/bench"

    def throw_away_redis_user(self) -> str:
        """Make a user who may keep results in Redis, which Celery's may not here; return the URL."""
        password = secrets.token_urlsafe(24)
        self.redis(f"ACL SETUSER bench reset on >{password} ~* &* +@all")
        return f"redis://bench:{password}@{self.address}:6379/0"

    def redis(self, command: str) -> str:
        """Run a command as Redis' administrator and return the answer."""
        password = (STATE / "secrets" / "redis_admin").read_text().strip()
        # On standard input, where no list of processes shows it.
        return self.shell(
            "read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --user admin", stdin=f"{password}\n{command}\n"
        )

    def cpu(self) -> dict[str, float]:
        """Return the processor seconds that each server has taken so far."""
        script = "cat /proc/$(pgrep -o -x beam.smp)/stat /proc/$(pgrep -o -x redis-server)/stat"
        return dict(zip(("RabbitMQ", "Redis"), map(cpu_of, self.shell(script).splitlines()), strict=True))

    def memory(self) -> dict[str, float]:
        """Return MiB of memory and disk that the servers take."""
        script = "ps -o rss= -C beam.smp; du -sk /var/lib/rabbitmq | cut -f1; du -sk /var/lib/redis | cut -f1"
        rabbitmq, rabbitmq_disk, redis_disk = (int(line) / 1024 for line in self.shell(script).split())
        used = re.search(r"^used_memory:(\d+)", self.redis("INFO memory"), re.MULTILINE)
        return {
            "rabbitmq": rabbitmq,
            "rabbitmq_disk": rabbitmq_disk,
            "redis": int(used[1]) / 2**20 if used else 0.0,
            "redis_disk": redis_disk,
        }


# --- what the kernel knows of a process ------------------------------------------------------------


def resident(pid: int) -> float:
    """Return the resident set size of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_of(stat: str) -> float:
    """Return the processor seconds in a line of ``/proc/PID/stat``."""
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that processes have taken so far."""
    return sum(cpu_of(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)


def segments(pids: Sequence[int]) -> dict[str, int]:
    """Return by connection how many TCP segments with data processes have sent and received so far."""
    lines = subprocess.run(["ss", "-tinHO"], capture_output=True, text=True, check=True).stdout.splitlines()
    owned = subprocess.run(["ss", "-tnpHO"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = {line.split()[3] for line in owned if any(f"pid={pid}," in line for pid in pids)}
    counts = {}
    for line in lines:
        local = line.split()[3]
        if local in mine:
            counts[local] = sum(map(int, re.findall(r"data_segs_(?:out|in):(\d+)", line)))
    return counts


# --- the cases -------------------------------------------------------------------------------------


class Bench:
    """The cases, in the order in which they run.

    Args:
        servers: the host.
        sides: by name; ``hybrid`` and ``redis`` are among them.
        size: how much is measured.
        report: takes the figures.
    """

    def __init__(self, servers: Servers, sides: dict[str, Side], size: Size, report: Report) -> None:
        self.servers = servers
        self.sides = sides
        self.size = size
        self.report = report
        self.stack = contextlib.ExitStack()
        #: What random ids are made from; new ones in each run.
        self.seed = secrets.randbits(32)
        self.failed: dict[str, str] = {}
        #: What, MiB before and after.
        self.processes: list[tuple[str, float, float]] = []

    def run(self) -> None:
        """Run all cases."""
        with self.stack:
            workers = {name: Worker(side) for name, side in self.sides.items()}
            clients = {name: Probe(side) for name, side in self.sides.items()}
            for name in self.sides:
                self.stack.callback(workers[name].close)
                self.stack.callback(clients[name].close)
            say("warming up")
            self.turns(clients, 1, lambda probe: probe("tasks", 50))
            begun = {name: (resident(clients[name].pid), max(map(resident, workers[name].pids[1:]))) for name in PAIR}
            self.stores(clients)
            self.tasks(clients, workers)
            self.round_trips(clients)
            few = self.canvases()
            for name in PAIR:
                label, (client, child) = self.sides[name].label, begun[name]
                self.processes.append(
                    (f"client that has collected all results, {label}", client, resident(clients[name].pid))
                )
                self.processes.append((f"worker's child, {label}", child, max(map(resident, workers[name].pids[1:]))))
            self.idle(clients, workers)
        self.look_ups()
        with contextlib.ExitStack() as stack:
            stack.callback(Worker(self.sides["hybrid"]).close)
            say(f"storing {self.size.full} results")
            with contextlib.closing(Probe(self.sides["hybrid"])) as filler:
                filler("fill", self.size.full, self.seed + 2)
            self.report.canvases(few, self.canvases(), self.size.full)

    def canvases(self) -> dict[str, list[float]]:
        """Chains and chords from a fresh client process; the first of each connects and does not count."""
        say("chains and chords")
        with contextlib.closing(Probe(self.sides["hybrid"])) as probe:
            times = probe("canvases", self.size.canvases + 1)
        return {name: values[1:] for name, values in times.items()}

    def turns(self, probes: dict[str, Probe], rounds: int, measure: Callable[[Probe], Any]) -> dict[str, list[Any]]:
        """Let the sides take turns, in the other order each round; one that fails takes no more part."""
        values: dict[str, list[Any]] = {name: [] for name in probes}
        begun = time.monotonic()
        for number in range(rounds):
            if number and time.monotonic() - begun > self.size.patience:
                break
            names = [name for name in probes if name not in self.failed]
            for name in names if number % 2 else reversed(names):
                try:
                    values[name].append(measure(probes[name]))
                except SideError as exc:
                    self.failed[name] = str(exc)
                    say(f"{self.sides[name].label}: {exc}")
        return values

    def stores(self, clients: dict[str, Probe]) -> None:
        """Results stored per second by one process."""
        say("storing results")
        count = self.size.stores
        turns = [("hybrid", "hybrid", "stores"), ("raw", "hybrid", "raw_stores"), ("redis", "redis", "stores")]
        rates: dict[str, list[float]] = {name: [] for name, _, _ in turns}
        costs: dict[str, list[float]] = {name: [] for name, _, _ in turns}
        for number in range(self.size.store_rounds + 1):
            for place, (name, client, command) in enumerate(turns if number % 2 else reversed(turns)):
                seconds, cpu = clients[client](command, count, self.seed + 10 * (number + 1) + place)
                # The first round connects.
                if number:
                    rates[name].append(count / seconds)
                    costs[name].append(1e6 * cpu / count)
        self.report.stores(rates, costs, count)

    def tasks(self, clients: dict[str, Probe], workers: dict[str, Worker]) -> None:
        """Many tasks from end to end, and what they take of the processors."""
        say("tasks from end to end")

        def spent(probe: Probe) -> dict[str, float]:
            main, *children = workers[probe.side.name].pids
            mine = {"client": [probe.pid], "worker": [main], "its children": children}
            return {who: cpu_seconds(pids) for who, pids in mine.items()} | self.servers.cpu()

        def measure(probe: Probe) -> tuple[float, dict[str, float]]:
            before = spent(probe)
            seconds = probe("tasks", self.size.tasks)
            return seconds, {who: cpu - before[who] for who, cpu in spent(probe).items()}

        rounds = self.turns(clients, self.size.task_rounds, measure)
        seconds = {name: [value for value, _ in values] for name, values in rounds.items()}
        self.report.tasks(seconds, self.size.tasks, self.failed)
        self.report.task_costs({name: [cpu for _, cpu in values] for name, values in rounds.items()}, self.size.tasks)

    def round_trips(self, clients: dict[str, Probe]) -> None:
        """One task after the other."""
        say("round trips")
        times = self.turns(clients, self.size.trip_rounds, lambda probe: probe("round_trips", self.size.trips))
        self.report.round_trips(times, self.failed)

    def idle(self, clients: dict[str, Probe], workers: dict[str, Worker]) -> None:
        """What clients and workers take while nothing happens, all at the same time."""
        say("idle")
        time.sleep(5)
        who = {(name, "client"): [clients[name].pid] for name in PAIR}
        who |= {(name, "worker"): workers[name].pids for name in PAIR}
        before = {key: (cpu_seconds(pids), segments(pids)) for key, pids in who.items()}
        time.sleep(self.size.idle)
        costs = {}
        for key, pids in who.items():
            cpu, counts = before[key]
            messages = sum(count - counts.get(connection, 0) for connection, count in segments(pids).items())
            costs[key] = (cpu_seconds(pids) - cpu, messages)
        self.report.idle(costs, self.size.idle)

    def look_ups(self) -> None:
        """Fresh processes read by id what is kept; and the memory that this takes."""
        live = self.size.live
        say(f"storing {live} results")
        before = self.servers.memory()
        for name in PAIR:
            with contextlib.closing(Probe(self.sides[name])) as filler:
                filler("fill", live, self.seed)
        time.sleep(5)
        after = self.servers.memory()
        say("look-ups by id")
        first: dict[str, list[float]] = {name: [] for name in PAIR}
        further: dict[str, list[float]] = {name: [] for name in PAIR}
        sizes = {}
        for number in range(self.size.processes):
            for name in PAIR if number % 2 else reversed(PAIR):
                with contextlib.closing(Probe(self.sides[name])) as probe:
                    wanted = probe("sample", live, self.seed, self.size.look_ups + 1, number)
                    start = resident(probe.pid)
                    first[name] += probe("look_ups", wanted[:1])
                    further[name] += probe("look_ups", wanted[1:])
                    sizes[name] = (start, resident(probe.pid))
        self.report.look_ups(first, further, live)
        self.processes += [(f"client that reads by id, {self.sides[name].label}", *sizes[name]) for name in PAIR]
        self.report.memory(live, (before, after), self.processes, self.queues())

    def queues(self) -> tuple[int, dict[str, float], dict[str, float]] | None:
        """Return what the servers take before and after some results are stored that have a queue each."""
        if "queue-per-task" in self.failed:
            return None
        say("results with a queue each")
        before = self.servers.memory()
        with contextlib.closing(Probe(self.sides["queue-per-task"])) as probe:
            probe("fill", self.size.queues, self.seed)
            time.sleep(5)
            return self.size.queues, before, self.servers.memory()


# --- set-up ----------------------------------------------------------------------------------------


def sides_on(servers: Servers) -> dict[str, Side]:
    """Return all sides."""
    ours, rival = venv(CACHE / "venv", *PINS, package=PACKAGE), venv(CACHE / "queue-per-task", *PINS, QUEUE_PER_TASK)
    redis = f"redis://celery:{secret('redis')}@{servers.address}:6379/0"
    rabbitmq = servers.throw_away_vhost()
    client, worker = (
        f"amqp://{user}:{secret(f'rabbitmq_{user}')}@{servers.address}:5672/celery" for user in ("client", "worker")
    )
    sides = [
        Side("hybrid", "ours, `amqp://` (broker Redis)", redis, client, ours, worker),
        Side("redis", "`redis://` (broker Redis)", redis, servers.throw_away_redis_user(), ours),
        Side("rpc", "`rpc://` (broker RabbitMQ)", rabbitmq, "rpc://", ours),
        Side(
            "queue-per-task",
            f"{QUEUE_PER_TASK.replace('==', ' ')} (broker RabbitMQ)",
            rabbitmq,
            "celery_amqp_backend.AMQPBackend://",
            rival,
        ),
    ]
    return {side.name: side for side in sides}


def facts(servers: Servers, *, quick: bool) -> dict[str, str]:
    """Return what the reader should know of the machine."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "run": time.strftime("%Y-%m-%d") + (", `--quick`: fewer rounds, rough figures" if quick else ""),
        "machine": f"{os.cpu_count()} cores {model[1] if model else platform.machine()}, {memory:.0f} GiB of memory, "
        "clients, workers and servers on the same",
        "load average before the run": f"{os.getloadavg()[0]:.1f}",
        "servers": servers.versions(),
        "clients and workers": f"Python {platform.python_version()}, {', '.join(PINS)}",
    }


def load() -> str:
    """Return what else the machine did, for the end of a report's facts."""
    return f"{os.getloadavg()[0]:.1f}, other programs included"


def measure(servers: Servers, *, quick: bool) -> str:
    """Run all cases; return the report, as Markdown."""
    sides = sides_on(servers)
    report = Report({side.name: side.label for side in sides.values()}, facts(servers, quick=quick))
    Bench(servers, sides, QUICK if quick else Size(), report).run()
    report.facts["load average after the run"] = load()
    return report.text()


def main(description: str, quick: str, report: Callable[..., str]) -> None:
    """Do what the command line asks for: find a host or boot one, measure, print, write.

    Args:
        description: of the program.
        quick: what ``--quick`` means.
        report: takes the servers and ``quick``, and returns the report as Markdown.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--image", choices=HOSTS, default="debian13", help="release of Debian on the host")
    parser.add_argument("--on", metavar="ADDRESS", help="a test host that the roles have set up and that stays")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report there as well")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    inventory, address = HOSTS[options.image]
    with contextlib.nullcontext() if options.on else host(INVENTORIES / inventory, CACHE / "site.log"):
        text = report(Servers(options.on or address), quick=options.quick)
    print(text)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)


if __name__ == "__main__":
    main("Measure the result backend beside its rivals.", "fewer rounds and results, in two minutes", measure)

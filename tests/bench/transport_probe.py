#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``transport.py`` runs with the Python of the package: both transports against one empty database of Redis.

Each line of the output is a row as JSON. Both sides take turns, so that whatever else the machine does meets both.
The user of the URL needs INFO.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import kombu
import redis

KINDS = {"ours": "celery_hybrid.broker.transport:Transport", "stock": "kombu.transport.redis:Transport"}
BODY = {"text": "x" * 200}


def connect(url: str, kind: str) -> kombu.Connection:
    """Return a connection with one of the two transports."""
    return kombu.Connection(url, transport=KINDS[kind])


def empty(url: str) -> None:
    """Forget what a worker may have put back when it was stopped; it would be taken for a new message."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def send(url: str, count: int) -> None:
    """Fill the queue, with stock kombu."""
    empty(url)
    with connect(url, "stock") as connection:
        producer = connection.Producer(serializer="json")
        for _ in range(count):
            producer.publish(BODY, routing_key="bench")


def take(url: str, kind: str, count: int, prefetch: int) -> float:
    """Return messages taken and acknowledged in a second, by one consumer without a worker."""
    send(url, count)
    with connect(url, kind) as connection:
        left = count

        def received(message: kombu.Message) -> None:
            nonlocal left
            left -= 1
            message.ack()

        channel = connection.channel()
        channel.basic_qos(0, prefetch, False)
        kombu.Consumer(channel, [kombu.Queue("bench")], on_message=received).consume()
        begin = time.perf_counter()
        while left:
            connection.drain_events(timeout=30)
        return count / (time.perf_counter() - begin)


def only_take(url: str, kind: str, count: int, prefetch: int) -> float:
    """Return messages taken in a second, without acknowledgement."""
    send(url, count)
    with connect(url, kind) as connection:
        messages: list[kombu.Message] = []
        channel = connection.channel()
        channel.basic_qos(0, prefetch, False)
        kombu.Consumer(channel, [kombu.Queue("bench")], on_message=messages.append).consume()
        begin = time.perf_counter()
        while len(messages) < count:
            connection.drain_events(timeout=30)
        seconds = time.perf_counter() - begin
        channel.do_restore = False
    client = redis.Redis.from_url(url)
    client.delete("unacked", "unacked_index")
    client.close()
    return count / seconds


@contextlib.contextmanager
def worker(url: str, kind: str, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of its own process."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "transport_probe", "worker", "-P", pool, "-c", "2", "-Q", "bench"),
            *("-l", "ERROR", "--without-mingle", "--without-gossip", "--without-heartbeat"),
        ],
        cwd=os.path.dirname(os.path.abspath(__file__)),  # noqa: PTH100, PTH120
        env={**os.environ, "BENCH_TRANSPORT": kind, "BENCH_URL": url, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def tasks(url: str, kind: str, count: int, pool: str) -> float:
    """Return tasks that a worker does in a second: from the first tenth to the last acknowledgement."""
    empty(url)
    client = redis.Redis.from_url(url)
    app = _app(url, "stock")
    for _ in range(count):
        app.send_task("bench.nothing", queue="bench")
    with worker(url, kind, pool) as process:
        begin = end = 0.0
        while not end:
            time.sleep(0.01)
            if process.poll() is not None:
                sys.exit("the worker has ended")
            left = client.llen("bench") + client.hlen("unacked")
            if not begin and left <= count * 0.9:
                begin, first = time.perf_counter(), left
            if not left:
                end = time.perf_counter()
    client.close()
    return float(first / (end - begin))


def latency(url: str, kind: str, count: int) -> list[float]:
    """Return milliseconds from sending to receiving, of a consumer that waits."""
    empty(url)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with connect(url, kind) as connection:

                def received(message: kombu.Message) -> None:
                    os.write(write_end, b"%d\n" % time.perf_counter_ns())
                    message.ack()

                channel = connection.channel()
                channel.basic_qos(0, 4, False)
                kombu.Consumer(channel, [kombu.Queue("bench")], on_message=received).consume()
                while True:
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=10)
        finally:
            os._exit(1)
    found = []
    with connect(url, "stock") as connection, os.fdopen(read_end) as answers:
        producer = connection.Producer(serializer="json")
        for number in range(count + 10):
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311
            begin = time.perf_counter_ns()
            producer.publish(BODY, routing_key="bench")
            answer = int(answers.readline())
            if number >= 10:
                found.append((answer - begin) / 1e6)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(write_end)
    return found


def calls(client: redis.Redis) -> int:
    """Return how many commands Redis has executed; those inside scripts count as well."""
    stats = client.info("commandstats")
    return sum(
        value["calls"] for name, value in stats.items() if name not in ("cmdstat_info", "cmdstat_client|setinfo")
    )


def idle(url: str, kind: str, seconds: float) -> float:
    """Return commands that an idle worker sends in a second."""
    empty(url)
    client = redis.Redis.from_url(url)
    with worker(url, kind, "prefork"):
        time.sleep(15)
        before = calls(client)
        time.sleep(seconds)
        after = calls(client)
    client.close()
    return (after - before) / seconds


@contextlib.contextmanager
def consumers(url: str, kind: str, count: int) -> Iterator[None]:
    """Run consumers that wait, each with a process of its own."""
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                with connect(url, kind) as connection:
                    channel = connection.channel()
                    channel.basic_qos(0, 4, False)
                    queue = kombu.Queue("bench")
                    kombu.Consumer(channel, [queue], on_message=lambda message: message.ack()).consume()
                    while True:
                        with contextlib.suppress(TimeoutError):
                            connection.drain_events(timeout=10)
            finally:
                os._exit(1)
        children.append(child)
    try:
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@contextlib.contextmanager
def workers(url: str, kind: str, count: int) -> Iterator[None]:
    """Run workers that send events, each in a process of its own that runs the tasks as well."""
    from celery.signals import worker_ready

    read_end, write_end = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                # The banner is not a row.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                worker_ready.connect(lambda **_: os.write(write_end, b"."), weak=False)
                alone = ("--without-mingle", "--without-gossip", "--without-heartbeat")
                name = f"bench-{number}@bench"
                _app(url, kind).worker_main(  # type: ignore[attr-defined]
                    ["worker", "-P", "solo", "-E", "-Q", "bench", "-n", name, "-l", "ERROR", *alone]
                )
            finally:
                os._exit(1)
        children.append(child)
    try:
        ready = 0
        while ready < count:
            ready += len(os.read(read_end, count))
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


Run = Callable[[str, str, int], contextlib.AbstractContextManager[None]]


def cost(run: Run, url: str, kind: str, waiting: int, count: int, seconds: float) -> tuple[float, float]:
    """Return commands for each message or task, while so many wait; and those of an idle one in a second."""
    empty(url)
    client = redis.Redis.from_url(url)
    app = _app(url, "stock")
    with run(url, kind, waiting), connect(url, "stock") as connection:
        producer = connection.Producer(serializer="json")

        def send() -> None:
            if run is workers:
                app.send_task("bench.nothing", queue="bench", producer=producer)  # type: ignore[attr-defined]
            else:
                producer.publish(BODY, routing_key="bench")

        send()
        time.sleep(10)
        before, begin = calls(client), time.monotonic()
        time.sleep(seconds)
        rate = (calls(client) - before) / (time.monotonic() - begin)
        before, begin = calls(client), time.monotonic()
        for _ in range(count):
            send()
            time.sleep(random.uniform(0.05, 0.15))  # noqa: S311
        while client.llen("bench") + client.hlen("unacked"):
            time.sleep(0.1)
        # The last events.
        time.sleep(1)
        used = calls(client) - before - rate * (time.monotonic() - begin)
    client.close()
    return used / count, rate / waiting


def _app(url: str, kind: str) -> object:
    from celery import Celery

    if kind == "ours":
        from celery_hybrid.broker import transport

        transport.install()
    app = Celery("bench", broker=url)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )

    @app.task(name="bench.nothing", shared=False)
    def nothing() -> None:
        pass

    return app


def compared(rounds: int, measure: Callable[[str], float]) -> tuple[float, float]:
    """Return the medians of both, measured in turns."""
    figures: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            figures[kind].append(measure(kind))
    return statistics.median(figures["ours"]), statistics.median(figures["stock"])


def main(url: str, *, quick: bool) -> None:
    """Measure, and print the rows."""
    part, rounds = (10, 1) if quick else (1, 3)
    if redis.Redis.from_url(url).dbsize():
        sys.exit("The database is not empty.")

    def row(name: str, figures: tuple[float, float], unit: str) -> None:
        print(json.dumps([name, *figures, unit]), flush=True)

    for prefetch in (1, 4, 32):
        figures = compared(rounds, lambda kind, n=prefetch: take(url, kind, 2000 // part, n))  # type: ignore[misc]
        row(f"take and acknowledge, prefetch {prefetch}", figures, "messages/s")
    figures = compared(rounds, lambda kind: only_take(url, kind, 2000 // part, 100_000))
    row("take, prefetch 100,000", figures, "messages/s")
    for pool in ("solo", "prefork"):
        figures = compared(rounds, lambda kind, p=pool: tasks(url, kind, 2000 // part, p))  # type: ignore[misc]
        row(f"tasks of a worker, {pool}", figures, "tasks/s")
    delays: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            delays[kind] += latency(url, kind, 200 // part)
    for name, share in (("median", 0.5), ("99th percentile", 0.99)):
        ours, stock = (sorted(delays[kind])[int(len(delays[kind]) * share)] for kind in KINDS)
        row(f"latency of an idle queue, {name}", (ours, stock), "ms")
    for waiting in (1, 50):
        for run, what, who in ((consumers, "message", "consumers"), (workers, "task with events", "workers")):
            found = {kind: cost(run, url, kind, waiting, 100 // part, 30 / part) for kind in KINDS}
            row(f"commands for a {what}, {waiting} idle {who}", (found["ours"][0], found["stock"][0]), "commands")
    row("commands of each of 50 idle workers", (found["ours"][1], found["stock"][1]), "commands/s")
    row("commands of an idle worker", compared(1, lambda kind: idle(url, kind, 30 / part)), "commands/s")


if "BENCH_URL" in os.environ:
    app = _app(os.environ["BENCH_URL"], os.environ["BENCH_TRANSPORT"])
elif __name__ == "__main__":
    main(os.environ["BENCH_REDIS"], quick="--quick" in sys.argv)

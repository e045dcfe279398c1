# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One client process of one side, which measures what it is told to.

Reads one command a line, ``["name", argument, …]``, and answers each with a line, ``{"value": …}`` or
``{"error": "…"}``. So ``run.py`` can let several sides take turns.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import amqp
from celery import chain, chord, states
from celery.app.task import Context
from celery.result import AsyncResult, ResultSet

from tests.bench.bench_app import add, app, total

TIMEOUT = 120


def ids(count: int, seed: int) -> list[str]:
    """Return ids of tasks, the same ones for the same seed, so that two sides can store the same."""
    source = random.Random(seed)  # noqa: S311 - no secret
    return [str(uuid.UUID(int=source.getrandbits(128), version=4)) for _ in range(count)]


def request(task_id: str) -> Context:
    """Return what a worker knows of a task when it stores the result."""
    return Context(
        id=task_id,
        task=add.name,
        args=[2, 2],
        kwargs={},
        hostname="bench@localhost",
        retries=0,
        correlation_id=task_id,
        # A client that is not there: what is measured is storing, not receiving.
        reply_to="00000000-0000-4000-8000-000000000000",
        delivery_info={"routing_key": "bench"},
    )


def stores(count: int, seed: int) -> list[float]:
    """Store so many results, as a worker's child does; return seconds, and those of the processor."""
    work = [(task_id, request(task_id)) for task_id in ids(count, seed)]
    begun, cpu = time.perf_counter(), time.process_time()
    for task_id, context in work:
        app.backend.store_result(task_id, 4, states.SUCCESS, request=context)
    return [time.perf_counter() - begun, time.process_time() - cpu]


def _messages(count: int, seed: int) -> Iterator[tuple[amqp.Message, str]]:
    """Yield what the backend ``amqp://`` would publish for so many results, and where to."""
    from celery_hybrid.names import archive_stream, partition_of
    from celery_hybrid.rabbitmq.records import RESULT

    backend = app.backend
    for task_id in ids(count, seed):
        context = request(task_id)
        meta = backend._get_result_meta(result=4, state=states.SUCCESS, traceback=None, request=context)
        meta["task_id"] = task_id
        message = backend._codec.encode(task_id, RESULT, meta, status=states.SUCCESS).to_message(context.reply_to)
        yield message, archive_stream(partition_of(task_id, backend.options.partitions))


@functools.cache
def _raw_channel(confirm: bool = True) -> amqp.Channel:
    """Return a channel of a connection of py-amqp alone, to where the backend stores."""
    server = app.backend.store._servers[0]
    connection = amqp.Connection(
        host=server.address,
        userid=server.user,
        password=server.password,
        virtual_host=server.vhost,
        confirm_publish=confirm,
    )
    connection.connect()
    return connection.channel()


def raw_stores(count: int, seed: int) -> list[float]:
    """Publish the same bytes with py-amqp alone, a confirm each, already encoded; return what ``stores`` does."""
    channel = _raw_channel()
    work = [(message.body, dict(message.properties), key) for message, key in _messages(count, seed)]
    begun, cpu = time.perf_counter(), time.process_time()
    for body, properties, key in work:
        channel.basic_publish(amqp.Message(body, **properties), "celery.results", key, confirm_timeout=10)
    return [time.perf_counter() - begun, time.process_time() - cpu]


def tasks(count: int) -> float:
    """Send so many tasks and collect all results; return seconds."""
    begun = time.perf_counter()
    results = [add.delay(number, number) for number in range(count)]
    values = ResultSet(results, app=app).get(timeout=TIMEOUT)
    seconds = time.perf_counter() - begun
    if values != [2 * number for number in range(count)]:
        raise AssertionError("wrong results")
    return seconds


def round_trips(count: int) -> list[float]:
    """Send a task and wait for its result, so many times; return milliseconds of each."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        value = add.delay(number, 1).get(timeout=TIMEOUT)
        times.append(1000 * (time.perf_counter() - begun))
        if value != number + 1:
            raise AssertionError("wrong result")
    return times


def canvases(count: int) -> dict[str, list[float]]:
    """Send chains of 3 and chords of 20 and wait for each; return milliseconds by what it was."""
    times: dict[str, list[float]] = {"chain of 3": [], "chord of 20": []}
    for number in range(count):
        works = {
            "chain of 3": (chain(add.s(number, 1), add.s(1), add.s(1)), number + 3),
            "chord of 20": (chord([add.s(number, each) for each in range(20)], total.s()), 20 * number + 190),
        }
        for name, (work, expected) in works.items():
            begun = time.perf_counter()
            value = work.delay().get(timeout=TIMEOUT)
            times[name].append(1000 * (time.perf_counter() - begun))
            if value != expected:
                raise AssertionError("wrong result")
    return times


def fill(count: int, seed: int) -> float:
    """Put so many results of ended tasks into the store, faster than workers would; return seconds."""
    begun = time.perf_counter()
    backend = app.backend
    if app.conf.result_backend.startswith("redis"):
        pipeline = backend.client.pipeline(transaction=False)
        for number, task_id in enumerate(ids(count, seed), 1):
            meta = backend._get_result_meta(result=4, state=states.SUCCESS, traceback=None, request=request(task_id))
            meta["task_id"] = task_id
            pipeline.set(backend.get_key_for_task(task_id), backend.encode(meta), ex=backend.expires)
            if number % 1000 == 0:
                pipeline.execute()
        pipeline.execute()
    elif app.conf.result_backend.startswith("amqp"):
        channel = _raw_channel(confirm=False)
        for message, key in _messages(count, seed):
            channel.basic_publish(message, "celery.results", key)
        # The confirm of a later record says that all before it in the same stream are there; these reach every stream.
        for message, key in _messages(10 * backend.options.partitions, seed + 1):
            channel.basic_publish_confirm(message, "celery.results", key)
    else:
        stores(count, seed)
    return time.perf_counter() - begun


def sample(count: int, seed: int, size: int, number: int) -> list[str]:
    """Return some of the ids that were stored with this seed, others for another number."""
    return random.Random(number).sample(ids(count, seed), size)  # noqa: S311 - no secret


def look_ups(task_ids: list[str]) -> list[float]:
    """Read results by id; return milliseconds of each."""
    times = []
    for task_id in task_ids:
        begun = time.perf_counter()
        state = AsyncResult(task_id, app=app).state
        times.append(1000 * (time.perf_counter() - begun))
        if state != states.SUCCESS:
            raise AssertionError(f"the result of {task_id} is {state}")
    return times


COMMANDS = {
    function.__name__: function
    for function in (stores, raw_stores, tasks, round_trips, canvases, fill, sample, look_ups)
}


def main() -> None:
    """Answer until there is no more input."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": COMMANDS[name](*arguments)}
        except Exception as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

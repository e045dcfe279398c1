"""Canary tasks: through Redis to a worker, and the proof on the wire that their results went through RabbitMQ.

The task is ``celery.accumulate``, which every worker has without the application's help; given a nonce it returns it.

What a run leaves behind, and for how long: in RabbitMQ the records of its tasks and of their being forgotten, until
the streams' ``max-age``, and the process's reply queue, until it expires by itself (30 minutes). In Redis nothing.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
import zlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import amqp
from celery.exceptions import TimeoutError as CeleryTimeoutError

from .broker import Broker
from .letters import DeadLetterFinder
from .report import CheckReport, Failed, Skipped, describe
from .results import EXCHANGE, STREAM, ResultChecks

TASK = "celery.accumulate"
_CONTENT_TYPES = {"json": "application/json", "pickle": "application/x-python-serialize", "yaml": "application/x-yaml"}
_PARKED_FOR = 60_000  # milliseconds, should this process die between parking a message and taking it away
_SCAN_SECONDS = 10.0
_SCAN_BATCH = 1000
_QUEUE_DEPTH = 100_000
_PREFETCH = 200
_READ_SECONDS = 5.0


class QueueCanary:
    """One task, sent to one queue.

    Args:
        queue: where it is sent.
        partitions: the configured number of streams.
    """

    def __init__(self, queue: str, partitions: int) -> None:
        self.queue = queue
        self.id = str(uuid.uuid4())
        self.nonce = secrets.token_hex(16)
        self.stream = STREAM.format(zlib.crc32(self.id.encode()) % partitions)
        self.sent = False
        self.node: str | None = None
        self.result: Any = None


class StreamWatcher:
    """An independent reader of the streams, attached *before* a canary is sent, so that no clock matters.

    Args:
        connection: a plain AMQP connection.
        streams: the streams to read.
    """

    def __init__(self, connection: amqp.Connection, streams: Sequence[str]) -> None:
        self._connection = connection
        self._seen: list[tuple[str, amqp.basic_message.Message]] = []
        for stream in dict.fromkeys(streams):
            self._attach(stream, "next")

    def record_of(self, canary: QueueCanary, seconds: float) -> amqp.basic_message.Message:
        """Wait for the record of a canary's success.

        Raises:
            Failed: it did not arrive.
        """
        deadline = time.monotonic() + seconds
        while True:
            mine = [
                message
                for stream, message in self._seen
                if stream == canary.stream and message.properties.get("correlation_id") == canary.id
            ]
            for message in mine:
                if _status(message) == "SUCCESS":
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                states = ", ".join(dict.fromkeys(_status(message) for message in mine))
                raise Failed(
                    f"{canary.stream} received only {states} of task {canary.id}"
                    if mine
                    else f"{canary.stream} received no record of task {canary.id}",
                )
            try:
                self._connection.drain_events(timeout=left)
            except TimeoutError:
                continue

    def read_again(self, stream: str, offset: int, task_id: str) -> None:
        """Read one record at its offset, as any other process may at any later time.

        Raises:
            Failed: it is not there.
        """
        channel = self._attach(stream, offset)
        deadline = time.monotonic() + _READ_SECONDS
        try:
            while True:
                for found, message in self._seen:
                    if (
                        found == stream
                        and message.channel is channel
                        and message.headers.get("x-stream-offset") == offset
                        and message.properties.get("correlation_id") == task_id
                    ):
                        return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failed(f"{stream} does not deliver offset {offset} a second time")
                try:
                    self._connection.drain_events(timeout=left)
                except TimeoutError:
                    continue
        finally:
            channel.close()

    def _attach(self, stream: str, offset: str | int) -> amqp.Channel:
        channel = self._connection.channel()
        # A stream delivers nothing without a prefetch limit, and needs acknowledgements to go on.
        channel.basic_qos(0, _PREFETCH, False)

        def receive(message: amqp.basic_message.Message) -> None:
            self._seen.append((stream, message))
            channel.basic_ack(message.delivery_tag)

        try:
            channel.basic_consume(stream, callback=receive, arguments={"x-stream-offset": offset})
        except amqp.NotFound as exc:
            raise Failed(
                f"{stream} does not exist", "Declare it again: run the site playbook against the rabbitmq host."
            ) from exc
        return channel


class Canaries:
    """Sends canaries and looks for their traces.

    Args:
        app: the Celery application.
        broker: where the tasks go.
        results: where the results must arrive.
        queues: queues that get a canary each.
        avoided: queues that get none, because no worker consumes them.
        timeout: seconds one round trip may take.
        letters: where refused messages must arrive; without, none is sent.
    """

    def __init__(
        self,
        app: Any,
        broker: Broker,
        results: ResultChecks,
        queues: Sequence[str],
        avoided: Collection[str],
        timeout: float,
        letters: DeadLetterFinder | None = None,
    ) -> None:
        self._app = app
        self._broker = broker
        self._results = results
        self._letters = letters or DeadLetterFinder(results, {})
        self._canaries = [QueueCanary(queue, results.partitions) for queue in queues]
        self._avoided = frozenset(avoided)
        self._timeout = timeout

    def check(self, report: CheckReport) -> None:
        """Run all checks with canaries."""
        report.run(
            "canary.message",
            "a task message in Redis is application/json",
            self._parked_message,
            remedy="Set task_serializer to json: run the site playbook against the worker hosts.",
            needs=["broker.authorised"],
        )
        with ExitStack() as stack:
            archive: StreamWatcher | Exception
            try:
                connection = stack.enter_context(self._results.connect())
                archive = StreamWatcher(connection, [canary.stream for canary in self._canaries])
            except Exception as exc:
                archive = exc
            for canary in self._canaries:
                self._check_one(report, canary, archive)

    def _check_one(self, report: CheckReport, canary: QueueCanary, archive: StreamWatcher | Exception) -> None:
        suffix = f"[{canary.queue}]"
        arrived = report.run(
            f"canary.roundtrip{suffix}",
            f"{TASK} returns its nonce within {self._timeout:g} s",
            lambda: self._round_trip(canary),
            remedy="Look at the workers' journal: journalctl -u 'celery-worker@*'; and at the failed checks above.",
            # Without RabbitMQ a worker could only wait; with another kind of URL the canary shows where results go.
            needs=["broker.authorised", *(["results.authenticated"] if self._results.on_rabbitmq else [])],
        )
        if not arrived:
            # The others are still tried, but verify must end.
            self._timeout = min(self._timeout, 5.0)
        sent = [] if canary.sent else [f"canary.roundtrip{suffix}"]
        report.run(
            f"canary.archive{suffix}",
            f"{canary.stream} holds the result: {self._content_type()}, durable, and can be read again",
            lambda: self._archived(canary, archive, _READ_SECONDS if arrived else 1.0),
            remedy="The worker that ran it does not store results in RabbitMQ: set CELERY_RESULT_BACKEND=amqp://… in "
            "its environment file (site playbook), and restart it.",
            needs=["results.authenticated", *sent],
        )
        report.run(
            f"canary.redis{suffix}",
            "Redis holds no key of the result",
            lambda: self._not_in_redis(canary),
            remedy="Some worker stores results in Redis: set CELERY_RESULT_BACKEND=amqp://… in its environment file "
            "(site playbook), and restart it.",
            needs=["broker.authorised", *sent],
        )
        report.run(
            f"canary.forgotten{suffix}",
            "PENDING after forget()",
            lambda: self._forgotten(canary),
            remedy="See the workers' journal; the record expires by itself.",
            needs=[f"canary.roundtrip{suffix}"],
        )
        report.run(
            f"canary.refused{suffix}",
            "a pickled task is not run, and is found among the dead letters",
            lambda: self._refused(canary.queue),
            remedy="Set accept_content to json alone, and worker_consumer to celery_hybrid.worker.consumer:Consumer, "
            "as the worker role does: run the site playbook, which restarts the workers.",
            needs=[f"canary.roundtrip{suffix}"],
        )

    def _content_type(self) -> str:
        serializer = str(self._app.conf.result_serializer)
        return _CONTENT_TYPES.get(serializer, serializer)

    def _round_trip(self, canary: QueueCanary) -> str:
        if canary.queue in self._avoided:
            raise Failed(
                "not sent, because no worker says that it consumes this queue",
                "Add the queue to an instance of worker_instances and run the site playbook.",
            )
        started = time.perf_counter()
        try:
            self._app.backend  # noqa: B018 - loads it
        except Exception as exc:
            raise Failed(
                "not sent, because result_backend cannot be loaded", "Repair settings.result_backend first."
            ) from exc
        canary.result = self._app.send_task(
            TASK,
            args=[canary.nonce],
            kwargs={"index": 0},
            task_id=canary.id,
            queue=canary.queue,
            priority=0,  # the highest in Redis: a backlog must not make a sound deployment look broken
            expires=self._timeout + 30,
            ignore_result=False,
            retry=False,
        )
        canary.sent = True
        sent = time.perf_counter()
        try:
            value = canary.result.get(timeout=self._timeout, propagate=False, interval=0.05)
        except CeleryTimeoutError as exc:
            if self._take_back(canary):
                raise Failed(
                    f"no worker took the task within {self._timeout:g} s; it was removed again",
                    "Look whether the workers of this queue are busy or stuck: celery inspect active.",
                ) from exc
            raise Failed(
                f"a worker took the task, but no result came back within {self._timeout:g} s",
                "Look at the workers' journal for errors when storing results, and whether every worker was restarted "
                "since its environment file was written.",
            ) from exc
        ended, now = time.perf_counter(), time.time()
        state = canary.result.state
        if state != "SUCCESS" or value != canary.nonce:
            raise Failed(f"{state}: {value!r}" if value != canary.nonce else f"the state is {state}")
        canary.node = getattr(canary.result, "worker", None)
        by = f" by {canary.node}" if canary.node else ""
        legs = [("sent in", sent - started)]
        back = _seconds_since(canary.result.date_done, now)
        if back is not None and 0 <= back <= ended - started:
            # By the worker's clock, which is this host's where the canary ran here. It may be done before sending ends.
            legs += [("done by the worker after", max(0.0, ended - sent - back)), ("back through RabbitMQ after", back)]
        else:
            legs.append(("back after", ended - sent))
        return f"SUCCESS{by}: {', '.join(f'{leg} {seconds * 1000:.0f} ms' for leg, seconds in legs)}"

    def _archived(self, canary: QueueCanary, archive: StreamWatcher | Exception, seconds: float) -> str:
        if isinstance(archive, Failed):
            raise Failed(archive.actual, archive.remedy)
        if isinstance(archive, Exception):
            raise Failed(f"the archive cannot be read: {describe(archive)}")
        message = archive.record_of(canary, seconds)
        properties, headers = message.properties, dict(message.headers)
        offset = int(headers.get("x-stream-offset", -1))
        wanted = self._content_type()
        wrong = []
        if properties.get("content_type") != wanted:
            wrong.append(f"content type is {properties.get('content_type')}")
        if message.delivery_info.get("exchange") != EXCHANGE:
            wrong.append(f"it was published to exchange {message.delivery_info.get('exchange')!r}")
        if wanted == "application/json":
            body = _decoded(message)
            if body.get("task_id") != canary.id or body.get("result") != canary.nonce:
                wrong.append("its body is not this task's result")
        if wrong:
            raise Failed(f"{canary.stream} offset {offset}: {'; '.join(wrong)}")
        archive.read_again(canary.stream, offset, canary.id)
        return f"{canary.stream} offset {offset}: {wanted}, in a stream, {len(message.body)} bytes, read twice"

    def _refused(self, queue: str) -> str:
        """Send a task as no client should, and remove its dead letter again."""
        why = self._letters.unreadable()
        if why:
            raise Skipped(why)
        app, canary = self._app, QueueCanary(queue, self._results.partitions)
        message = app.amqp.create_task_message(
            canary.id, TASK, [canary.nonce], {"index": 0}, expires=self._timeout + 30
        )
        started = time.perf_counter()
        with app.producer_or_acquire() as producer:
            producer.publish(
                message.body,
                exchange="",
                routing_key=queue,
                serializer="pickle",
                headers=message.headers,
                priority=0,
                retry=False,
                **message.properties,
            )
        reason = self._letters.take(canary.id, self._timeout)
        took = (time.perf_counter() - started) * 1000
        if reason is None:
            if self._take_back(canary):
                raise Failed(
                    f"no worker took the message within {self._timeout:g} s; it was removed again",
                    "Look whether the workers of this queue are busy or stuck: celery inspect active.",
                )
            ran = app.AsyncResult(canary.id).state == "SUCCESS"
            raise Failed(
                "a worker has run it: it accepts pickle, so anyone who can write to Redis can run code there"
                if ran
                else f"a worker took it, and no dead letter of it came within {self._timeout:g} s"
            )
        if reason != "task.refused":
            raise Failed(f"it became a dead letter as {reason}, not as task.refused; the letter was removed")
        return f"refused, and among the dead letters after {took:.0f} ms; the letter was removed"

    def _parked_message(self) -> str:
        """Put a task message where no worker consumes, check it, and remove it."""
        app, client = self._app, self._broker.client
        key = f"celery.verify.{uuid.uuid4()}"
        message = app.amqp.create_task_message(str(uuid.uuid4()), TASK, [secrets.token_hex(8)], {})
        try:
            with app.producer_or_acquire() as producer:
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=key,
                    serializer=app.conf.task_serializer,
                    compression=app.conf.task_compression,
                    headers=message.headers,
                    retry=False,
                    **message.properties,
                )
            client.pexpire(key, _PARKED_FOR)
            raw = client.lindex(key, 0)
            if raw is None:
                raise Failed(
                    "the message did not arrive in the list of its queue",
                    "Look at broker_transport_options: global_keyprefix, or a transport other than kombu's Redis.",
                )
            envelope = json.loads(raw)
        finally:
            client.delete(key)
        kind = envelope.get("content-type")
        told = f"{kind}, {envelope.get('content-encoding')}, {len(raw)} bytes"
        if kind != "application/json":
            raise Failed(told)
        return told

    def _not_in_redis(self, canary: QueueCanary) -> str:
        client = self._broker.client
        # Where rpc:// keeps results on a Redis broker: a list named after the sender.
        reply = str(self._app.thread_oid)
        found = [reply] if client.exists(reply) else []
        known = f"celery-task-meta-{canary.id}"
        if client.exists(known):
            found.append(known)
        looked_at, complete = 0, False
        deadline = time.monotonic() + _SCAN_SECONDS
        cursor = 0
        while time.monotonic() < deadline:
            cursor, keys = client.scan(cursor, match=f"*{canary.id}*", count=_SCAN_BATCH)
            looked_at += _SCAN_BATCH
            found += [key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys]
            if cursor == 0:
                complete = True
                break
        if found:
            found = list(dict.fromkeys(found))
            # Each carries this canary's id, or this process's; nothing else will ever remove it.
            client.delete(*found)
            raise Failed(f"found, and removed: {', '.join(found)}")
        if not complete:
            raise Failed(
                f"undecided: {looked_at} keys were checked in {_SCAN_SECONDS:g} s, and there are more",
                "Keep other data out of the broker's database, or leave this check out (skip).",
            )
        return f"none of {client.dbsize()} keys"

    def _forgotten(self, canary: QueueCanary) -> str:
        canary.result.forget()
        state = self._app.AsyncResult(canary.id).state
        if state != "PENDING":
            raise Failed(f"still {state}")
        return str(state)

    def _take_back(self, canary: QueueCanary) -> bool:
        """Remove a task that no worker took from its queue; return whether it was there."""
        client = self._broker.client
        channel = self._broker.channel
        for priority in channel.priority_steps:
            key = channel._q_for_pri(canary.queue, priority)
            # The newest is at the left.
            for start in range(0, _QUEUE_DEPTH, _SCAN_BATCH):
                batch = client.lrange(key, start, start + _SCAN_BATCH - 1)
                for element in batch:
                    if canary.id.encode() in element:
                        return bool(client.lrem(key, 1, element))
                if len(batch) < _SCAN_BATCH:
                    break
        return False


def _seconds_since(done: Any, now: float) -> float | None:
    """Return how long before *now* a result says that it was done, if it does say."""
    try:
        return now - (done if isinstance(done, datetime) else datetime.fromisoformat(str(done))).timestamp()
    except ValueError:
        return None


def _status(message: amqp.basic_message.Message) -> str:
    status = message.headers.get("status")
    return str(status) if status else str(_decoded(message).get("status", "?"))


def _decoded(message: amqp.basic_message.Message) -> dict[str, Any]:
    try:
        body = json.loads(message.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}

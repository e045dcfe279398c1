"""Chords that earlier versions have begun: their parts are taken over from RabbitMQ into Redis.

They counted all chords of a vhost in the queue ``celery.chords``, which one worker at a time reads (single
active consumer). While one of them is that worker, it goes on counting what it has begun. When the last has gone, a
worker of this version gets what is left. Where the queue does not exist there is nothing to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import amqp
from kombu.exceptions import OperationalError

from celery_hybrid.broker.chord_counter import COMPLETE, RedisCounter
from celery_hybrid.errors import RecordRefusedError, ResultStoreUnreachableError
from celery_hybrid.names import CHORDS_QUEUE, RESULTS_EXCHANGE
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Servers
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.receiver import Receiver
from celery_hybrid.rabbitmq.records import CHORD_GROWTH, CHORD_PART, CHORD_SHAPE, CHORD_SIZE, SEED, Record
from celery_hybrid.results.chords import MainProcessChords

logger = logging.getLogger(__name__)

_PREFETCH = 100
_PATIENCE = 10.0


class OldChords(Receiver):
    """Takes parts over in a worker's main process, in a thread of its own.

    Args:
        servers: where.
        options: timeouts.
        prepare: checks the topology on a new connection.
        app: returns the Celery application, or None when it is gone.
    """

    def __init__(
        self,
        servers: Servers,
        options: Options,
        prepare: Callable[[amqp.Connection], None],
        app: Callable[[], Any],
    ) -> None:
        super().__init__(
            servers,
            options,
            prepare,
            "chords of an earlier version",
            "This worker does not take over chords of an earlier version now.",
        )
        self._app = app
        self._chords: MainProcessChords | None = None

    def _enter(self, channel: amqp.Channel) -> None:
        app = self._app()
        if app is None or not app.backend.counts_in_redis or not self._found():
            self._stopping.set()
            return
        self._chords = MainProcessChords(app.backend, RedisCounter(app, app.backend.expires, _PATIENCE))
        channel.basic_qos(0, _PREFETCH, False)
        channel.basic_consume(CHORDS_QUEUE, callback=self._received)

    def _found(self) -> bool:
        assert self._connection is not None  # noqa: S101 - called on a new connection
        return _exists(self._connection, self._options.confirm_timeout)

    def _received(self, message: amqp.Message) -> None:
        record = Record.from_message(message)
        if record.kind == SEED:
            message.channel.basic_ack(message.delivery_tag)
            return
        assert self._chords is not None  # noqa: S101 - made by _enter
        try:
            if self._take_over(record) == COMPLETE:
                self._chords.leave(record.group)
        except OperationalError as exc:
            # It comes again with the next connection.
            raise ResultStoreUnreachableError(f"Redis does not answer: {exc}") from exc
        except (RecordRefusedError, KeyError, TypeError, ValueError) as exc:
            logger.error("A %s of chord %s is refused: %s.", record.kind, record.group, exc)
            refused = exc if isinstance(exc, RecordRefusedError) else RecordRefusedError(repr(exc))
            self._chords.backend.store.refusals.refuse(record, refused)
        message.channel.basic_ack(message.delivery_tag)

    def _take_over(self, record: Record) -> str:
        chords = self._chords
        assert chords is not None  # noqa: S101 - made by _enter
        counter, group, meta = chords.counter, record.group, chords.backend.decode_record(record)
        if record.kind == CHORD_SHAPE:
            shape = meta["result"]
            return counter.adopt(group, "shape", "" if shape is None else json.dumps(shape))
        if record.kind == CHORD_SIZE:
            return counter.adopt(group, "size", int(meta["result"]))
        if record.kind == CHORD_GROWTH:
            return counter.grow(group, record.id, adopt=True)
        if record.kind == CHORD_PART:
            part = chords.encoded(meta["task_id"], meta["index"], meta["status"], meta["result"])
            body = chords.packed(meta["chord"])
            return counter.count(group, part, meta["origin"], body, bounded=False, adopt=True)
        raise ValueError(f"{record.kind!r} is not a part of a chord")


def _exists(connection: amqp.Connection, timeout: float) -> bool:
    """Return whether the queue exists: whether it takes a message.

    RabbitMQ logs an error for each passive declaration of a queue that it does not have, and none for a message that
    it returns (https://www.rabbitmq.com/docs/publishers#unroutable).
    """
    channel = ConfirmedChannel(connection)
    number = channel.publish(Record("", SEED).to_message(), RESULTS_EXCHANGE, CHORDS_QUEUE)
    taken = channel.wait(number, timeout)
    channel.close()
    return taken

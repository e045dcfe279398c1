"""What the result store needs in RabbitMQ: checked by every process, declared by operators or on request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import amqp

from celery_hybrid.errors import TopologyError
from celery_hybrid.names import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    JOURNAL_QUEUE,
    REFUSED_EXCHANGE,
    REFUSED_RESULT_KEY,
    RESULTS_EXCHANGE,
    SEGMENT_BYTES,
    archive_stream,
)
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import HOW_TO_DECLARE, translated
from celery_hybrid.rabbitmq.options import SETTING, Options
from celery_hybrid.rabbitmq.records import SEED, Record

#: The kernel writes what is older than half a minute (vm.dirty_expire_centisecs, 30 s by default).
JOURNAL_SECONDS = 300

#: What the rabbitmq role says by default (rabbitmq_dead_letters_expire).
LETTERS_SECONDS = 30 * 24 * 3600

_CHECKING = "the result store's objects"


def check(connection: amqp.Connection, options: Options) -> None:
    """Make sure that all objects are there, and that there are as many streams as configured.

    A mandatory message that is also copied to a reply queue counts as routed when its stream is missing, so a
    publisher cannot rely on that alone. A stream too many means that other processes look for results elsewhere; it
    is found by a message that must come back, because asking for a queue that is rightly absent would put an error
    into RabbitMQ's log each time.

    Raises:
        TopologyError: the message names the object, the vhost and the remedy.
    """
    where = f"vhost {connection.virtual_host!r}"
    with connection.channel() as channel:
        ask = partial(channel.exchange_declare, RESULTS_EXCHANGE, "direct", passive=True)
        _exists(ask, RESULTS_EXCHANGE, where)
        for partition in range(options.partitions):
            name = archive_stream(partition)
            try:
                _exists(partial(channel.queue_declare, name, passive=True), name, where)
            except TopologyError as exc:
                if partition == 0:
                    raise
                raise TopologyError(
                    f"{exc} If there are meant to be {partition} streams, set {SETTING} = "
                    f"{{'partitions': {partition}}} in every process."
                ) from exc
        if options.survive_power_loss:
            _exists(partial(channel.queue_declare, JOURNAL_QUEUE, passive=True), JOURNAL_QUEUE, where)
    surplus = archive_stream(options.partitions)
    with translated(_CHECKING):
        asking = ConfirmedChannel(connection)
        number = asking.publish(Record("", SEED, subject=SEED).to_message(), RESULTS_EXCHANGE, surplus)
        taken = asking.wait(number, options.confirm_timeout)
        asking.close()
    if taken:
        raise TopologyError(
            f"RabbitMQ has more result streams in {where} than the {options.partitions} that are configured: {surplus} "
            f"exists. Set {SETTING} = {{'partitions': N}} to their number, the same in every process."
        )


def declare(connection: amqp.Connection, options: Options, expires: float | None) -> None:
    """Declare what is missing, for people without the rabbitmq role.

    Retention goes into the streams' own arguments here, because policies need the management API. So what was
    declared this way cannot later be taken over by the role; RabbitMQ refuses other arguments for the same name.

    Args:
        connection: of a user that may configure ``celery.*``.
        options: the number of partitions.
        expires: seconds that results are kept for; None keeps them until the disk is full.

    Raises:
        ResultStoreError: the user has no right to, or an object exists with other arguments.
    """
    streams: dict[str, Any] = {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": SEGMENT_BYTES}
    if expires:
        streams["x-max-age"] = f"{max(1, int(expires))}s"
    letters = {
        "x-queue-type": "quorum",
        "x-max-length": 100_000,
        "x-max-length-bytes": 2**30,
        "x-overflow": "reject-publish",
        "x-message-ttl": LETTERS_SECONDS * 1000,
        # Each look at a letter counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times. 3.10 refuses
        # -1, which stands for no limit.
        "x-delivery-limit": 2**31 - 1,
    }

    with translated(_CHECKING), connection.channel() as channel:
        channel.exchange_declare(RESULTS_EXCHANGE, "direct", durable=True, auto_delete=False)
        channel.exchange_declare(DEAD_LETTER_EXCHANGE, "topic", durable=True, auto_delete=False)
        channel.exchange_declare(REFUSED_EXCHANGE, "direct", durable=True, auto_delete=False)
        channel.exchange_bind(DEAD_LETTER_EXCHANGE, REFUSED_EXCHANGE, REFUSED_RESULT_KEY)
    for partition in range(options.partitions):
        name = archive_stream(partition)
        _declare_queue(connection, name, streams, RESULTS_EXCHANGE, name)
    if options.survive_power_loss:
        journal = {"x-queue-type": "quorum", "x-message-ttl": JOURNAL_SECONDS * 1000}
        _declare_queue(connection, JOURNAL_QUEUE, journal, RESULTS_EXCHANGE, JOURNAL_QUEUE)
    _declare_queue(connection, DEAD_LETTER_QUEUE, letters, DEAD_LETTER_EXCHANGE, "#")


def _declare_queue(
    connection: amqp.Connection, name: str, arguments: dict[str, Any], exchange: str, routing_key: str
) -> None:
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, passive=True)
    except amqp.exceptions.NotFound:
        with translated(_CHECKING), connection.channel() as channel:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    with translated(_CHECKING), connection.channel() as channel:
        channel.queue_bind(name, exchange, routing_key=routing_key)


def _exists(ask: Callable[[], Any], name: str, where: str) -> None:
    try:
        with translated(_CHECKING):
            ask()
    except TopologyError as exc:
        raise TopologyError(f"RabbitMQ has no {name} in {where}. {HOW_TO_DECLARE}.") from exc

"""What the result store needs in RabbitMQ: checked by every process, declared by operators or on request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import amqp

from celery_hybrid.errors import TopologyError
from celery_hybrid.names import ARCHIVE_PREFIX, RESULTS_EXCHANGE, archive_stream
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import HOW_TO_DECLARE, translated
from celery_hybrid.rabbitmq.objects import arguments, objects
from celery_hybrid.rabbitmq.options import SETTING, Options
from celery_hybrid.rabbitmq.records import SEED, Record

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
    wanted = objects(partitions=options.partitions)
    with connection.channel() as channel:
        for exchange in _used(wanted["exchanges"], options):
            if exchange.get("checked"):
                ask = partial(channel.exchange_declare, exchange["name"], exchange["type"], passive=True)
                _exists(ask, exchange["name"], where)
        for queue in _used(wanted["queues"], options):
            if queue.get("checked"):
                _queue_exists(channel, queue["name"], where)
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
    wanted = objects(partitions=options.partitions, result_expires=max(1, int(expires)) if expires else None)
    bindings = _used(wanted["bindings"], options)
    with translated(_CHECKING), connection.channel() as channel:
        for exchange in _used(wanted["exchanges"], options):
            channel.exchange_declare(exchange["name"], exchange["type"], durable=True, auto_delete=False)
        for each in bindings:
            if each.get("destination_type") == "exchange":
                channel.exchange_bind(each["destination"], each["source"], each["routing_key"])
    for queue in _used(wanted["queues"], options):
        _declare_queue(connection, queue["name"], arguments(queue, wanted["policies"]))
    with translated(_CHECKING), connection.channel() as channel:
        for each in bindings:
            if each.get("destination_type", "queue") == "queue":
                channel.queue_bind(each["destination"], each["source"], routing_key=each["routing_key"])


def _used(declared: list[dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    """Those of the objects that the options ask for."""
    return [each for each in declared if "option" not in each or getattr(options, each["option"])]


def _declare_queue(connection: amqp.Connection, name: str, wanted: dict[str, Any]) -> None:
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, passive=True)
    except amqp.exceptions.NotFound:
        with translated(_CHECKING), connection.channel() as channel:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=wanted)


def _queue_exists(channel: amqp.Channel, name: str, where: str) -> None:
    try:
        _exists(partial(channel.queue_declare, name, passive=True), name, where)
    except TopologyError as exc:
        _, found, partition = name.partition(ARCHIVE_PREFIX)
        if not found or partition == "0":
            raise
        raise TopologyError(
            f"{exc} If there are meant to be {partition} streams, set {SETTING} = "
            f"{{'partitions': {partition}}} in every process."
        ) from exc


def _exists(ask: Callable[[], Any], name: str, where: str) -> None:
    try:
        with translated(_CHECKING):
            ask()
    except TopologyError as exc:
        raise TopologyError(f"RabbitMQ has no {name} in {where}. {HOW_TO_DECLARE}.") from exc

"""The journal: the newest records once more, where the power of a single node may fail.

RabbitMQ confirms a record of a stream when the kernel has it, and does not wait for the disk
(https://www.rabbitmq.com/docs/streams#data-safety). With the option ``survive_power_loss`` each record also goes, in
the same publish, to a quorum queue, which is on the disk before its confirm
(https://www.rabbitmq.com/docs/quorum-queues#data-safety). Its messages expire after some minutes, when the kernel has
long written the stream. After a start of RabbitMQ a worker puts them into the streams again: a record that is there
twice changes nothing.
"""

from __future__ import annotations

import logging

import amqp

from celery_hybrid.names import JOURNAL_QUEUE, REPLAYED_EXCHANGE, RESULTS_EXCHANGE
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.rabbitmq.records import Record

logger = logging.getLogger(__name__)


def replay(connection: amqp.Connection, options: Options) -> None:
    """Put the journal into the streams, once after each start of RabbitMQ.

    Several workers may do it at the same time: each takes other messages.

    Args:
        connection: of a user with the rights of a worker.
        options: the number of partitions and timeouts.

    Raises:
        amqp.exceptions.AMQPError: it did not succeed; it is to be tried again on another connection.
        TimeoutError: RabbitMQ did not confirm in time.
    """
    if _replayed(connection):
        return
    channel = connection.channel()
    streams = ConfirmedChannel(connection)
    # Those that come in meanwhile were confirmed by the RabbitMQ that runs now.
    count = channel.queue_declare(JOURNAL_QUEUE, passive=True).message_count
    for done in range(count):
        message = channel.basic_get(JOURNAL_QUEUE)
        if message is None:
            count = done
            break
        record = Record.from_message(message)
        # Into the journal again as well: the power may fail once more.
        number = streams.publish(
            record.to_message(journal=True), RESULTS_EXCHANGE, record.routing_key(options.partitions)
        )
        streams.wait(number, options.confirm_timeout)
        channel.basic_ack(message.delivery_tag)
    # Not durable, so it is gone after the next start.
    channel.exchange_declare(REPLAYED_EXCHANGE, "fanout", durable=False, auto_delete=False)
    channel.close()
    streams.close()
    if count:
        logger.info("RabbitMQ has started: %d records of its journal are in their streams again.", count)


def _replayed(connection: amqp.Connection) -> bool:
    channel = connection.channel()
    try:
        channel.exchange_declare(REPLAYED_EXCHANGE, "fanout", passive=True)
    except amqp.exceptions.NotFound:
        return False  # RabbitMQ has closed the channel
    channel.close()
    return True

"""A stock application with everything that Celery does with Redis; run by the Python of a stock virtual environment.

rights_app.py produce            send tasks in every way
rights_app.py administrate       look at workers, control them, hear events, empty and remove queues
celery -A rights_app worker …    run the tasks
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue

DONE = Path(os.environ["RIGHTS_DONE"])
TOPIC = Exchange("news", type="topic")
# Queues that expire need scripts, which an application that only sends does not have.
TEMPORARY = (Queue("brief", expires=60, message_ttl=30),)
if "produce" in sys.argv:
    TEMPORARY = ()

app = Celery("rights_app", broker=os.environ["RIGHTS_BROKER"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_send_sent_event=True,
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 4,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "socket_timeout": 10,
        "health_check_interval": 2,
        "priority_steps": [0, 3, 6, 9],
        "queue_order_strategy": "priority",
        "deadletter_queue": "celery.undeliverable",
        "client_name": "rights_app",
    },
    task_queues=[Queue("celery"), Queue("slow"), Queue("news", TOPIC, routing_key="a.#"), *TEMPORARY],
    task_create_missing_queues=False,
)


@app.task
def note(word: str, seconds: float = 0) -> None:
    """Write a word down, and take some time over it."""
    with DONE.open("a") as file:
        file.write(f"{word}\n")
    time.sleep(seconds)


@app.task(bind=True)
def retried(self) -> None:
    """Succeed the second time."""
    if not self.request.retries:
        raise self.retry(countdown=0.5)
    note("retried")


@app.task(bind=True)
def requeued(self) -> None:
    """Go back to the queue once."""
    if not self.request.delivery_info["redelivered"]:
        raise Reject("again", requeue=True)
    note("requeued")


def produce() -> None:
    """Send what the test waits for."""
    for priority in (0, 3, 9):
        note.apply_async((f"priority {priority}",), priority=priority)
    note.apply_async(("slow",), queue="slow", expires=300)
    note.apply_async(("later",), countdown=1)
    note.apply_async(("topic",), queue="news", routing_key="a.b")
    (note.si("first") | note.si("second")).delay()
    retried.delay()
    requeued.delay()


def administrate() -> None:
    """Do what people do with workers."""
    note.apply_async(("brief",), queue="brief")
    inspect = app.control.inspect(timeout=3)
    for look in ("ping", "active", "scheduled", "reserved", "stats", "conf", "active_queues", "registered"):
        if not getattr(inspect, look)():
            sys.exit(f"no worker answers {look}")
    app.control.add_consumer("brief", reply=True, timeout=3)
    app.control.cancel_consumer("brief", reply=True, timeout=3)
    app.control.rate_limit("rights_app.note", "100/s", reply=True, timeout=3)
    note.apply_async(("taken by hand",), queue="brief")
    app.control.revoke("0", reply=True, timeout=3)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": print})
        receiver.capture(limit=2, timeout=5)
        channel = connection.default_channel
        brief = app.amqp.queues["brief"](channel)
        brief.queue_declare(passive=True)
        if not brief.get():
            sys.exit("no message was in the queue")
        app.control.purge(connection=connection)
        brief.delete()


if __name__ == "__main__":
    {"produce": produce, "administrate": administrate}[sys.argv[1]]()

"""The application of the tests of chords, and the faults that they meet.

The file that CELERY_HYBRID_TEST_DIE names holds the name of a step: the next pool child that comes there removes the
file and is killed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

from celery import Task
from hybrid_tasks import make_app

from celery_hybrid.broker import chord_counter, transport
from celery_hybrid.broker.chord_counter import COMPLETE, RedisCounter
from celery_hybrid.results.backend import AMQPBackend

transport.install()
chord_counter.MOST_OF_CHORD = 100_000

DIE = "CELERY_HYBRID_TEST_DIE"
SETTINGS = json.loads(os.environ.get("CELERY_HYBRID_TEST_SETTINGS", "{}"))
OPTIONS = SETTINGS.pop("broker_transport_options", {})

app = make_app(
    worker_consumer="celery_hybrid.worker.consumer:Consumer",
    worker_dead_letters={"lost_retries": 3, "lost_retry_delay": 0.2},
    broker_connection_max_retries=None,
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5, **OPTIONS},
)
app.conf.update(SETTINGS)


def die_at(step, condition=True):
    path = Path(os.environ.get(DIE, "/nowhere"))
    if condition and path.exists() and path.read_text() == step:
        path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def before(step, method):
    @functools.wraps(method)
    def call(*args, **kwargs):
        die_at(step)
        return method(*args, **kwargs)

    return call


def behind(step, method, which=lambda result: True):
    @functools.wraps(method)
    def call(*args, **kwargs):
        result = method(*args, **kwargs)
        die_at(step, which(result))
        return result

    return call


if DIE in os.environ:
    AMQPBackend.on_chord_part_return = before("stored", AMQPBackend.on_chord_part_return)
    RedisCounter.count = behind("counted", RedisCounter.count, lambda answer: answer == COMPLETE)
    RedisCounter.finish = behind("sent", before("composed", RedisCounter.finish))


def note(path, text):
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@app.task(name="chords.value", shared=False)
def value(x, seconds=0):
    time.sleep(seconds)
    return x


@app.task(name="chords.quiet", shared=False, ignore_result=True)
def quiet(x):
    return x


@app.task(name="chords.gather", shared=False)
def gather(values, path=None):
    if path:
        note(path, json.dumps(values))
    return values


@app.task(name="chords.plus", shared=False)
def plus(x, y):
    return x + y


@app.task(name="chords.boom", shared=False)
def boom(text="boom"):
    raise ValueError(text)


@app.task(name="chords.long", shared=False)
def long(size):
    return "x" * size


@app.task(name="chords.adds", shared=False, bind=True)
def adds(self, x):
    self.add_to_chord(value.s(10 * x))
    return x


@app.task(name="chords.becomes", shared=False, bind=True)
def becomes(self, signature):
    raise self.replace(self.app.signature(signature))


@app.task(name="chords.kin", shared=False, bind=True)
def kin(self, _values):
    return [self.request.parent_id, self.request.root_id, self.request.delivery_info["priority"]]


@app.task(name="chords.own_id", shared=False, bind=True)
def own_id(self):
    return self.request.id


class Gated(Task):
    """Sent by code of its own, which fails."""

    def apply_async(self, *args, **kwargs):
        raise PermissionError("closed")


@app.task(name="chords.gated", shared=False, base=Gated)
def gated(values):
    return values


@app.task(name="chords.errback", shared=False)
def errback(request, exc, traceback, path, what=""):
    note(path, f"{os.getpid()} {request.id} {exc}")
    if what == "exit":
        sys.exit(1)
    if what == "wait":
        from celery.result import allow_join_result

        with allow_join_result():
            note(path, value.delay("errback waited").get(timeout=20))
    if what == "slow":
        time.sleep(3)


@app.task(name="chords.old_errback", shared=False)
def old_errback(task_id, path):
    note(path, task_id)

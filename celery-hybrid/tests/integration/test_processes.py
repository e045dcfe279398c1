"""Threads, forks and greenlets of one client process."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.usefixtures("worker")]


def in_child(function):
    """Run a function in a forked child and return what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = function()
        except BaseException as exc:
            answer = repr(exc)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = json.loads(pipe.read() or b"null")
    os.waitpid(pid, 0)
    return answer


def test_fork_after_use(task, app):
    add = task("add")
    before = add.delay(1, 1)
    assert before.get(timeout=20) == 2
    waiting = add.delay(3, 3)

    def child():
        answer = [add.delay(2, 2).get(timeout=20), app.AsyncResult(before.id).result, app.thread_oid]
        # What the parent sent is not pushed to the child; it finds it all the same.
        answer.append(app.AsyncResult(waiting.id).get(timeout=20))
        answer.append(before.get(timeout=5))
        return answer

    answer = in_child(child)
    assert answer[:2] == [4, 2]
    assert answer[3:] == [6, 2]
    assert answer[2] != app.thread_oid
    # The parent's connections have survived the child.
    assert waiting.get(timeout=20) == 6
    publisher = app.backend.store.publisher._link._connection
    app.backend.store_result("after-fork", 1, "SUCCESS")
    assert app.backend.store.publisher._link._connection is publisher or publisher is None
    assert add.delay(5, 5).get(timeout=20) == 10


def test_fork_while_another_thread_stores(app):
    # Celery's own first use holds locks of functools, which a child would inherit (Python before 3.12).
    app.backend.store_result("busy", 1, "PROGRESS")
    stop = threading.Event()

    def store():
        while not stop.is_set():
            app.backend.store_result("busy", 1, "PROGRESS")

    threads = [threading.Thread(target=store) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):

            def child(number=number):
                app.backend.store_result(f"child-{number}", number, "SUCCESS")
                return app.AsyncResult(f"child-{number}").result

            assert in_child(child) == number
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_many_threads_share_one_reply_queue(task, app, shell):
    add = task("add")
    add.delay(0, 0).get(timeout=20)
    before = shell.reply_queues()
    answers = []

    def use():
        answers.extend(add.delay(number, 1).get(timeout=30) for number in range(5))

    threads = [threading.Thread(target=use) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == sorted(list(range(1, 6)) * 20)
    assert shell.reply_queues() == before
    assert f"celery.reply.{app.thread_oid}" in before


def test_threads_may_wait_for_results_of_one_backend(task):
    results = [task("add").delay(number, 1) for number in range(30)]
    answers = {}

    def wait(number):
        answers[number] = results[number].get(timeout=30)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(30)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: number + 1 for number in range(30)}
    assert time.monotonic() - begun < 20


def test_two_threads_may_wait_for_one_task(task, app):
    result = task("add").delay(1, 1)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(app.AsyncResult(result.id).get(timeout=20))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [2] * 5


def test_a_process_that_ends_leaves_no_queue(in_process, shell):
    address, answer = in_process(
        "answer = [app.thread_oid if app.backend else '', app.tasks['hybrid.add'].delay(1, 1).get(timeout=20)]"
    )
    assert answer == 2
    end = time.monotonic() + 10
    while f"celery.reply.{address}" in shell.reply_queues():
        assert time.monotonic() < end


def test_workers_have_no_reply_queue(task, shell, app):
    """Chains are sent by the children of a pool, which would each have a queue that nobody asks."""
    from celery import chain

    before = shell.reply_queues()
    for _ in range(5):
        assert chain(task("add").s(1, 1), task("add").s(2))().get(timeout=20) == 4
    new = shell.reply_queues() - before
    assert new <= {f"celery.reply.{app.thread_oid}"}


def test_gevent(in_process):
    pytest.importorskip("gevent")
    answer = in_process(
        """
import gevent, time, threading
from celery.exceptions import TimeoutError
add = app.tasks["hybrid.add"]
def use(number):
    return add.delay(number, 1).get(timeout=30)
jobs = [gevent.spawn(use, number) for number in range(40)]
gevent.joinall(jobs)
values = [job.value for job in jobs]
called = []
add.delay(5, 5).then(lambda result: called.append(result.result))
gevent.sleep(2)
begun = time.monotonic()
try:
    app.AsyncResult("no-such").get(timeout=1)
except TimeoutError:
    pass
answer = [values, called, time.monotonic() - begun, threading.active_count()]
""",
        before="from gevent import monkey; monkey.patch_all()",
    )
    values, called, elapsed, threads = answer
    assert values == list(range(1, 41))
    assert called == [10]
    assert 1 <= elapsed < 2
    assert threads <= 3


def test_memory_of_a_client_does_not_grow_with_tasks(task, app):
    """What is kept for a task goes when its result was read, but for what is bounded by a setting."""
    for _ in range(100):
        task("add").delay(1, 1).get(timeout=20)
    backend, mailbox = app.backend, app.backend.store.mailbox
    assert not backend.result_consumer._wanted
    assert not any(backend._pending_results)
    assert backend._pending_messages.total == 0
    assert not mailbox._early
    assert mailbox._size == 0

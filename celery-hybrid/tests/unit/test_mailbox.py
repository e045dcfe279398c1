from __future__ import annotations

import gc

from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.results.replies import SENT_LIMIT, Mailbox


def result(task_id, status="SUCCESS", size=10):
    return Record(task_id, RESULT, status=status, body=b"x" * size)


class Waiter:
    def __init__(self, *ids):
        self.ids = set(ids)
        self.got = []

    def wants(self, task_id):
        return task_id in self.ids

    def deliver(self, record):
        self.got.append(record.id)


def test_delivered_to_all_who_wait_and_to_nobody_else():
    mailbox = Mailbox(10_000)
    waiters = [Waiter("a"), Waiter("a", "b"), Waiter("c")]
    for waiter in waiters:
        mailbox.join(waiter)
    mailbox.deliver(result("a"))
    assert [waiter.got for waiter in waiters] == [["a"], ["a"], []]
    assert mailbox.take("a") is None


def test_early_results_are_kept_until_they_are_taken():
    mailbox = Mailbox(10_000)
    mailbox.deliver(result("a", "STARTED"))
    mailbox.deliver(result("a", "SUCCESS"))
    mailbox.deliver(result("a", "STARTED"))
    assert mailbox.take("a").status == "SUCCESS"
    assert mailbox.take("a") is None
    assert mailbox._size == 0


def test_early_results_are_bounded_by_memory():
    mailbox = Mailbox(100_000)
    for number in range(1000):
        mailbox.deliver(result(f"id-{number}", size=1000))
        assert mailbox._size <= 100_000
    assert mailbox.take("id-999") is not None
    assert mailbox.take("id-0") is None


def test_only_results_are_delivered():
    mailbox = Mailbox(10_000)
    mailbox.deliver(Record.tombstone("a", RESULT))
    assert mailbox.take("a") is None


def test_waiters_that_are_gone_are_forgotten():
    mailbox = Mailbox(10_000)
    for _ in range(50):
        mailbox.join(Waiter("a"))
    gc.collect()
    mailbox.join(keep := Waiter("a"))
    assert len(mailbox._waiters) == 1
    assert keep.got == []


def test_expects_what_was_sent_until_it_came_or_the_queue_was_away():
    mailbox = Mailbox(10_000)
    mailbox.sent("a")
    mailbox.sent("b")
    assert mailbox.expects("a")
    assert not mailbox.expects("c")
    mailbox.deliver(result("a"))
    assert mailbox.expects("a")  # it is here already
    mailbox.take("a")
    assert not mailbox.expects("a")
    mailbox.unsure()
    assert not mailbox.expects("b")


def test_a_million_tasks_do_not_make_it_grow():
    mailbox = Mailbox(10_000)
    for number in range(3 * SENT_LIMIT):
        mailbox.sent(str(number))
    assert len(mailbox._sent) == SENT_LIMIT

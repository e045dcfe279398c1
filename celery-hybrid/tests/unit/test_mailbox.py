from __future__ import annotations

import gc

from celery_hybrid.archive.partition import Ends
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.results.replies import SENT_LIMIT, Mailbox
from celery_hybrid.results.store import _ids_in


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


def test_the_end_of_an_earlier_run_does_not_end_the_wait_for_the_later_one():
    mailbox = Mailbox(10_000)
    mailbox.join(waiter := Waiter("a"))

    def record(status, run):
        return Record("a", RESULT, status=status, run=run, retries=0)

    for each in (record("RETRY", 1), record("STARTED", 2), record("FAILURE", 1)):
        mailbox.deliver(each)
    assert waiter.got == ["a", "a"]
    mailbox.deliver(record("FAILURE", 2))
    assert waiter.got == ["a", "a", "a"]


def test_an_id_that_is_used_again_is_delivered_again():
    mailbox = Mailbox(10_000)
    mailbox.join(waiter := Waiter("a"))
    for _ in range(2):
        mailbox.sent("a")
        assert mailbox.expects("a")
        mailbox.deliver(result("a"))
    assert waiter.got == ["a", "a"]
    mailbox.deliver(result("a", "FAILURE"))  # sent by another process, with the same address
    assert waiter.got == ["a", "a", "a"]
    assert mailbox._size == 0


def test_record_that_no_waiter_takes_is_there_when_parents_are_asked_for():
    mailbox = Mailbox(10_000)
    mailbox.deliver(result("a", "FAILURE"))
    assert mailbox.look("a").status == "FAILURE"
    mailbox.add(result("b"))
    assert mailbox.look("b").status == "SUCCESS"
    assert not mailbox.expects("b")
    mailbox.forget("a")
    assert mailbox.look("a") is None


def test_tasks_that_follow_are_expected_and_nothing_older_is_read_for_them():
    mailbox = Mailbox(10_000)
    mailbox.ends = ends = Ends(0.0, {0: (7, 7)})
    mailbox.sent("a")
    mailbox.follow("a", ["b", "c"])
    mailbox.follow("unknown", ["d"])
    assert [mailbox.expects(each) for each in "abcd"] == [True, True, True, False]
    assert [mailbox.ends_before(each) for each in "bd"] == [ends, None]
    mailbox.unsure()
    assert not mailbox.expects("b")
    assert mailbox.ends_before("b") is ends


def test_ids_of_what_follows_are_found_in_a_message_and_not_in_arguments():
    def signature(name, **options):
        return {
            "task": "t",
            "args": [{"options": {"task_id": "no"}}],
            "kwargs": {},
            "options": {"task_id": name, **options},
        }

    nested = {**signature("group"), "subtask_type": "group", "kwargs": {"tasks": [signature("x"), signature("y")]}}
    embedded = {"chain": [signature("c", chord=signature("d")), nested], "chord": signature("e"), "callbacks": None}
    assert _ids_in(embedded) == {"c", "d", "e", "group", "x", "y"}

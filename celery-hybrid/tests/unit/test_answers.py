from __future__ import annotations

import pytest
from kombu import Connection, Producer, pidbox
from kombu.exceptions import ContentDisallowed

from celery_hybrid.worker import answers


@pytest.fixture
def ask():
    """Return what is heard when these answers are there, each of a serializer and a value."""

    def collect(mailbox, *said, limit=None):
        bound = mailbox(connection)
        queue = bound.reply_queue(connection.default_channel)
        queue.declare()
        for serializer, value in said:
            Producer(connection.default_channel).publish(
                value, routing_key=queue.name, exchange="", serializer=serializer, headers={"ticket": "t"}
            )
        return bound._collect("t", limit=limit, timeout=0.1)

    with Connection("memory://") as connection:
        yield collect


def stock():
    return pidbox.Mailbox("test", type="fanout", accept=["json"], serializer="json")


def test_stock_mailboxes_give_up_on_an_answer_that_is_refused(ask):
    with pytest.raises(ContentDisallowed):
        ask(stock(), ("pickle", 1), ("json", 2))


@pytest.mark.parametrize("limit", [None, 4, 3])
def test_refused_answers_are_left_out_and_the_others_heard(ask, caplog, limit):
    said = [("json", {"a": 1}), ("pickle", {"b": 1}), ("json", {"c": 1}), ("pickle", {"d": 1})]
    assert ask(answers.ForgivingMailbox.of(stock()), *said, limit=limit) == [{"a": 1}, {"c": 1}]
    assert caplog.text.count("Ignoring the answer of another worker") == (1 if limit == 3 else 2)


def test_a_mailbox_of_another_class_is_left_alone():
    class Own(pidbox.Mailbox):
        pass

    mailbox = Own("test")
    assert answers.ForgivingMailbox.of(mailbox) is mailbox

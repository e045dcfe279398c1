"""The file that says what must exist in RabbitMQ, and what reads it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from celery_hybrid import names
from celery_hybrid.rabbitmq import objects, topology
from celery_hybrid.rabbitmq.options import Options


class Channel:
    """Notes what it is asked for; every object is missing."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self._asked = asked

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def exchange_declare(self, name: str, kind: str, **flags: Any) -> None:
        self._asked.append(("exchange", name, kind, flags))

    def exchange_bind(self, destination: str, source: str, routing_key: str) -> None:
        self._asked.append(("binding", source, destination, routing_key))

    def queue_declare(self, name: str, **flags: Any) -> None:
        if flags.get("passive"):
            raise topology.amqp.exceptions.NotFound
        self._asked.append(("queue", name, flags["arguments"], flags["durable"], flags["auto_delete"]))

    def queue_bind(self, name: str, source: str, routing_key: str) -> None:
        self._asked.append(("binding", source, name, routing_key))


class Connection:
    """A connection to an empty RabbitMQ."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def channel(self) -> Channel:
        return Channel(self.asked)


def declared(expires: float | None = 86400.0, **options: Any) -> list[tuple[Any, ...]]:
    connection = Connection()
    topology.declare(connection, Options(**options), expires)
    return connection.asked


LETTERS = {
    "x-queue-type": "quorum",
    "x-max-length": 100_000,
    "x-max-length-bytes": 2**30,
    "x-overflow": "reject-publish",
    "x-message-ttl": 30 * 24 * 3600 * 1000,
    "x-delivery-limit": 2**31 - 1,
}
FLAGS = {"durable": True, "auto_delete": False}


# As earlier versions did: RabbitMQ refuses other arguments for a queue that exists.
@pytest.mark.parametrize("survive_power_loss", [False, True])
@pytest.mark.parametrize(("expires", "age"), [(3600.9, {"x-max-age": "3600s"}), (0.5, {"x-max-age": "1s"}), (None, {})])
def test_declares_the_same_objects_as_earlier_versions(survive_power_loss, expires, age):
    streams = ["celery.results.0", "celery.results.1"]
    stream = {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": 16_000_000, **age}
    journal = {"x-queue-type": "quorum", "x-message-ttl": 300_000}
    expected: list[tuple[Any, ...]] = [
        ("exchange", "celery.results", "direct", FLAGS),
        ("exchange", "celery.dlx", "topic", FLAGS),
        ("exchange", "celery.refused", "direct", FLAGS),
        ("binding", "celery.refused", "celery.dlx", "result.refused"),
        *(("queue", name, stream, True, False) for name in streams),
        *(("binding", "celery.results", name, name) for name in streams),
        ("queue", "celery.dead_letters", LETTERS, True, False),
        ("binding", "celery.dlx", "celery.dead_letters", "#"),
    ]
    if survive_power_loss:
        expected += [
            ("queue", "celery.journal", journal, True, False),
            ("binding", "celery.results", "celery.journal", "celery.journal"),
        ]
    asked = declared(expires, partitions=2, survive_power_loss=survive_power_loss)
    assert sorted(asked, key=str) == sorted(expected, key=str)
    assert objects.JOURNAL_SECONDS == 300


def test_exchanges_are_declared_before_their_bindings():
    kinds = [each[0] for each in declared(survive_power_loss=True)]
    assert kinds[:4] == ["exchange", "exchange", "exchange", "binding"]
    assert "queue" not in kinds[kinds.index("binding", 4) :]


def test_every_name_of_the_package_is_in_the_file():
    wanted = objects.objects()
    exchanges, queues = ({each["name"] for each in wanted[kind]} for kind in ("exchanges", "queues"))
    made = {(each["kind"], each["name"].replace("${address}", "")) for each in objects.DECLARED["made_by_processes"]}
    assert {names.RESULTS_EXCHANGE, names.DEAD_LETTER_EXCHANGE, names.REFUSED_EXCHANGE} == exchanges
    assert {names.JOURNAL_QUEUE, names.DEAD_LETTER_QUEUE, *map(names.archive_stream, range(16))} == queues
    assert {("queue", names.REPLY_PREFIX), ("exchange", names.REPLAYED_EXCHANGE)} == made
    assert {names.CHORDS_QUEUE} == objects.FORMER_QUEUES
    assert names.REFUSED_RESULT_KEY in {each["routing_key"] for each in wanted["bindings"]}


def test_bindings_lead_from_and_to_declared_objects():
    wanted = objects.objects(partitions=3)
    exchanges, queues = ({each["name"] for each in wanted[kind]} for kind in ("exchanges", "queues"))
    assert len(wanted["queues"]) == 2 + 3
    for each in wanted["bindings"]:
        assert each["source"] in exchanges
        assert each["destination"] in (exchanges if each.get("destination_type") == "exchange" else queues)


def test_every_policy_applies_to_something():
    wanted = objects.objects()
    queues = {each["name"] for each in wanted["queues"]}
    for policy in wanted["policies"]:
        assert any(re.search(policy["pattern"], name) for name in queues), policy["name"]


def test_what_has_no_value_is_left_out():
    wanted = objects.objects(result_expires=None)
    assert [each["definition"] for each in wanted["policies"] if each["name"] == "celery.results"] == [{}]
    assert all("password" not in user for user in wanted["users"])

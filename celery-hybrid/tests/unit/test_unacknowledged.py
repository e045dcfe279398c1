"""What was taken from Redis and is not acknowledged, as it is read for people."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.utils.json import dumps

from celery_hybrid.broker.unacknowledged import Unacknowledged, UnacknowledgedReader

MESSAGE = {"body": "", "headers": {"id": "t1", "task": "app.add"}, "properties": {}}


class Redis:
    """A hash and an index under a prefix, and how many round trips there were."""

    def __init__(self, entries: dict[bytes, bytes], index: dict[bytes, float]) -> None:
        self.keys: dict[str, dict[Any, Any]] = {"app.unacked": entries, "app.unacked_index": index}
        self.trips = 0
        self.waiting: list[Any] | None = None

    def _answer(self, answer: Any) -> Any:
        if self.waiting is not None:
            self.waiting.append(answer)
            return self
        self.trips += 1
        return answer

    def zcard(self, key: str) -> Any:
        return self._answer(len(self.keys[key]))

    def zrange(self, key: str, start: int, end: int, withscores: bool) -> Any:
        assert withscores
        found = sorted(self.keys[key].items(), key=lambda item: item[1])
        return self._answer(found[start:] if end == -1 else found[start : end + 1])

    def hget(self, key: str, name: bytes) -> Any:
        return self._answer(self.keys[key].get(name))

    def zscore(self, key: str, name: str) -> Any:
        return self._answer(self.keys[key].get(name.encode()))

    def pipeline(self, transaction: bool) -> Redis:
        assert not transaction
        self.waiting = []
        return self

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting = None

    def execute(self) -> list[Any]:
        self.trips += 1
        return list(self.waiting or [])


def entry(message: Any = MESSAGE, queue: str = "slow") -> bytes:
    return json.dumps([message, "", queue]).encode()


@pytest.fixture
def client() -> Redis:
    return Redis({b"a": entry(), b"c": b"not JSON"}, {b"b": 30.0, b"a": 20.0, b"c": 40.0})


@pytest.fixture
def reader(client: Redis) -> UnacknowledgedReader:
    channel = SimpleNamespace(global_keyprefix="app.", unacked_key="unacked", unacked_index_key="unacked_index")
    return UnacknowledgedReader(channel, client)


def test_all_are_read_in_two_round_trips_the_oldest_first(reader: UnacknowledgedReader, client: Redis) -> None:
    found = reader.read()
    assert [(each.name, each.taken, each.entry) for each in found] == [
        (b"a", 20.0, entry()),
        (b"b", 30.0, None),
        (b"c", 40.0, b"not JSON"),
    ]
    assert client.trips == 2


def test_a_limit_keeps_the_oldest_and_the_count_tells_of_all(reader: UnacknowledgedReader) -> None:
    assert [each.name for each in reader.read(limit=2)] == [b"a", b"b"]
    assert reader.count() == 3


def test_claims_that_are_gone_are_left_out(reader: UnacknowledgedReader, client: Redis) -> None:
    assert reader.still(["c", "gone", "a"]) == ["c", "a"]
    assert client.trips == 1


def test_an_entry_gives_its_message_and_its_routing_key() -> None:
    assert Unacknowledged(b"a", 1.0, entry()).unpacked() == (MESSAGE, "slow")
    identity = uuid.uuid4()
    typed = dumps([{"headers": {"id": identity}}, "", "slow"]).encode()
    assert Unacknowledged(b"a", 1.0, typed).unpacked()[0]["headers"]["id"] == identity


@pytest.mark.parametrize("raw", [None, b"", b"not JSON", b"{}", b"[1, 2]", b"7", b"\xff"])
def test_an_entry_that_is_missing_or_of_others_is_an_error(raw: bytes | None) -> None:
    with pytest.raises(ValueError, match="not an entry of kombu"):
        Unacknowledged(b"a", 1.0, raw).unpacked()

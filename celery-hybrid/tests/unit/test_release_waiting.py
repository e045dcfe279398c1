"""Waiting for worker instances: fast when all is well, at once when one has died, bounded in any case."""

from __future__ import annotations

from typing import Any

import pytest

from celery_hybrid.release import waiting as subject

ALIVE = {
    "ActiveState": "active",
    "SubState": "running",
    "NRestarts": "0",
    "Result": "success",
    "ExecMainStatus": "0",
    "ActiveEnterTimestampMonotonic": "1",
}


class World:
    """Units and nodes that change with a clock of their own."""

    def __init__(self, answers_at: dict[str, float], changes: dict[str, list[tuple[float, dict[str, str]]]]) -> None:
        self.now = 0.0
        self.pings = 0
        self.answers_at = answers_at
        self.changes = changes

    def states(self, unit: str) -> dict[str, str]:
        state = dict(ALIVE)
        for at, change in self.changes.get(unit, []):
            if self.now >= at:
                state.update(change)
        return state

    def ping(self, nodes: list[str]) -> set[str]:
        self.pings += 1
        return {node for node in nodes if self.now >= self.answers_at.get(node, 1e9)}

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, **changes: Any) -> Any:
        request = {"instances": ["a", "b"], "deaf": [], "beat": False, "node": "@h", "seconds": 30, **changes}
        return subject.wait(request, self.ping, self.states, self.clock, self.pause)


def test_one_question_is_enough_when_all_answer() -> None:
    world = World({"a@h": 0, "b@h": 0}, {})
    assert world.wait() == []
    assert (world.pings, world.now) == (1, 0.0)


def test_a_slow_start_is_waited_for() -> None:
    world = World({"a@h": 0, "b@h": 12}, {})
    assert world.wait() == []
    assert 12 <= world.now < 13


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "ExecMainStatus": "1"},
            "died",
        ),
        ({"NRestarts": "1"}, "died"),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "start-limit-hit"}, "start-limit-hit"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "is not running"),
    ],
)
def test_worker_that_dies_is_seen_immediately(change: dict[str, str], words: str) -> None:
    world = World({"a@h": 0}, {"celery-worker@b": [(2, change)]})
    (found,) = world.wait()
    assert found["unit"] == "celery-worker@b"
    assert words in found["sentence"]
    assert world.now < 3


def test_a_worker_that_never_answers_is_named_with_its_variable() -> None:
    world = World({"a@h": 0}, {})
    (found,) = world.wait(seconds=10)
    assert found["unit"] == "celery-worker@b"
    assert "worker_start_timeout" in found["sentence"]
    assert world.now < 11


def test_a_busy_solo_worker_need_not_answer() -> None:
    assert World({"a@h": 0}, {}).wait(deaf=["b"]) == []


def test_beat_that_dies_is_seen() -> None:
    dead = {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "ExecMainStatus": "1"}
    (found,) = World({"a@h": 0, "b@h": 0}, {"celery-beat": [(0, dead)]}).wait(beat=True)
    assert found["unit"] == "celery-beat"

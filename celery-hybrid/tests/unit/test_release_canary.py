"""A canary: run by the very node, or else it says why not; nothing is left behind."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery import exceptions as celery_exceptions

from celery_hybrid.release import canary as subject


class Result:
    def __init__(self, state: str, value: Any, worker: str) -> None:
        self.state, self.value, self.worker = state, value, worker

    def get(self, timeout: float, propagate: bool) -> Any:
        if not self.state:
            time.sleep(timeout / 100)
            raise celery_exceptions.TimeoutError
        return self.value

    def forget(self) -> None:
        pass


class App:
    """An application with one node."""

    def __init__(self, **changes: Any) -> None:
        self.deaf = self.silent = False
        self.state, self.worker, self.value = "SUCCESS", "a@h", None
        self.total, self.active_tasks = 0, 0
        self.asked: list[str] = []
        self.deleted: list[str] = []
        self.__dict__.update(changes)
        self.control = SimpleNamespace(
            add_consumer=self.answer("add"), cancel_consumer=self.answer("cancel"), inspect=lambda **_: self
        )
        self.default_channel = self.client = self
        self.priority_steps, self.keyprefix_queue = (0,), "_kombu.binding.%s"

    def answer(self, name: str) -> Any:
        def ask(queue: str, destination: list[str], **_: Any) -> list[dict[str, Any]]:
            self.asked.append(f"{name} {queue}")
            return [] if self.deaf else [{destination[0]: {"ok": ""}}]

        return ask

    def send_task(self, name: str, args: list[str], **options: Any) -> Result:
        assert options["queue"].name == "celery.canary.a@h"
        return Result(self.state, args[0] if args and self.value is None else self.value, self.worker)

    def stats(self) -> Any:
        return {"a@h": {"total": {"shop.add": self.total}}}

    def active(self) -> Any:
        return {"a@h": [{}] * self.active_tasks}

    def connection_for_write(self) -> App:
        return self

    def __enter__(self) -> App:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _q_for_pri(self, queue: str, priority: int) -> str:
        return f"{queue}:{priority}"

    def delete(self, *names: str) -> None:
        self.deleted += names


def test_a_node_that_runs_its_canary() -> None:
    app = App()
    told, problems = subject.run(app, ["a@h"], 5)
    assert problems == []
    assert told[0].startswith("a@h has run the canary")
    assert app.asked == ["add celery.canary.a@h", "cancel celery.canary.a@h"]
    assert app.deleted == ["celery.canary.a@h:0", "_kombu.binding.celery.canary.a@h"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"deaf": True}, "a@h does not answer"),
        ({"worker": "b@h"}, "the canary for a@h was run by b@h"),
        ({"state": "FAILURE", "value": "boom"}, "ended with FAILURE: 'boom'"),
        ({"value": "another"}, "ended with SUCCESS: 'another'"),
        ({"state": ""}, "a@h has run no task"),
        # What has begun and not ended proves nothing.
        ({"state": "", "total": 2, "active_tasks": 2}, "a@h has run no task"),
    ],
)
def test_a_node_that_does_not(changes: dict[str, Any], sentence: str) -> None:
    app = App(**changes)
    _, problems = subject.run(app, ["a@h"], 0.2)
    assert sentence in problems[0]
    assert app.deleted


def test_a_backlog_of_its_own_queues_is_as_good_a_proof() -> None:
    told, problems = subject.run(App(state="", total=5, active_tasks=2), ["a@h"], 5)
    assert (told, problems) == (["a@h has run 3 tasks from its queues"], [])


def test_a_task_of_the_application_may_return_what_it_likes() -> None:
    assert subject.run(App(value=42), ["a@h"], 5, "shop.check")[1] == []

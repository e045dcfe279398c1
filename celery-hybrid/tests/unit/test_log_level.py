"""Levels of loggers that are raised for a while."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import kombu.connection
import pytest

from celery_hybrid.worker import log_level as subject


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Levels of this test's own, put back behind it."""
    levels = subject.Levels()
    monkeypatch.setattr(subject._Main, "levels", levels)
    monkeypatch.setattr(subject._Main, "prepared", None)
    yield levels
    if subject._Main.timer is not None:
        subject._Main.timer.cancel()
        subject._Main.timer = None
    levels.apply({})


def answered(*arguments: Any) -> dict[str, Any]:
    """The answer to 'celery control log_level'."""
    state = SimpleNamespace(consumer=SimpleNamespace(pool=object()))
    return dict(subject.log_level(state, list(arguments)))


def test_levels_are_set_and_put_back_to_what_each_was() -> None:
    one, other = logging.getLogger("test.one"), logging.getLogger("test.other")
    one.setLevel(logging.ERROR)
    assert answered("debug", 60, "test.one", "test.other")["levels"] == {"test.one": "DEBUG", "test.other": "DEBUG"}
    answered("WARNING", 60, "test.other")
    assert (one.level, other.level) == (logging.DEBUG, logging.WARNING)
    assert answered("reset")["levels"] == {}
    assert (one.level, other.level) == (logging.ERROR, logging.NOTSET)


def test_levels_go_back_by_themselves() -> None:
    answered("DEBUG", 0.05, "test.soon")
    assert logging.getLogger("test.soon").level == logging.DEBUG
    deadline = time.monotonic() + 10
    while logging.getLogger("test.soon").level and time.monotonic() < deadline:
        time.sleep(0.01)
    assert logging.getLogger("test.soon").level == logging.NOTSET


def test_kombu_is_traced_while_its_level_is_debug() -> None:
    assert not kombu.connection._log_channel
    answered("DEBUG", 60)
    assert kombu.connection._log_channel
    assert kombu.connection._log_connection
    answered("INFO", 60, "kombu")
    assert not kombu.connection._log_channel
    assert not kombu.connection._log_connection


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("LOUD",), "is not a valid level"),
        (("DEBUG", 0), "between 0 and"),
        (("DEBUG", "x"), "not a valid number of seconds"),
        (("DEBUG", 1, "x" * 20_000), "too many loggers"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_changes(arguments: tuple[Any, ...], words: str) -> None:
    assert words in answered(*arguments)["error"]
    assert subject._Main.levels.wanted == {}


def test_a_child_takes_what_the_main_process_wrote_when_it_is_told(own: subject.Levels) -> None:
    before = signal.getsignal(subject._SIGNAL)
    subject.prepare()
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, b"ready")
        for _ in range(1000):
            if logging.getLogger("test.child").level == logging.DEBUG:
                os._exit(7)
            time.sleep(0.01)
        os._exit(0)
    try:
        # Python forgets signals that arrive while it forks; for those there is worker_process_init.
        os.read(ready, 5)
        own.publish({"test.child": logging.DEBUG})
        os.kill(child, subject._SIGNAL)
        _, status = os.waitpid(child, 0)
    finally:
        signal.signal(subject._SIGNAL, before)
    assert os.waitstatus_to_exitcode(status) == 7

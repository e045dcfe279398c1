"""The chaos suite: what counts as begun twice while nobody died."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import run

WORKER, CHILD = 10, 11
OTHER, OTHERS_CHILD = 20, 21


@pytest.fixture(scope="module")
def chaos() -> Any:
    return run


def side(**options: Any) -> Any:
    return SimpleNamespace(**{"deaths": [], "pauses": [], **options})


def runs(chaos: Any, retries: int = 0, again: bool = False) -> list[Any]:
    """Return a run from 100 to 101 on a worker, and one from 110 on another."""
    return [
        chaos.Span(1, 0, CHILD, WORKER, 100.0, 101.0, again),
        chaos.Span(1, retries, OTHERS_CHILD, OTHER, 110.0, 111.0, False),
    ]


def test_second_run_counts_when_nobody_died(chaos: Any) -> None:
    assert chaos.repeated(side(), [], runs(chaos), {1: 99.0}) == ([], [1])


def test_own_retry_of_a_task_does_not_count(chaos: Any) -> None:
    assert chaos.repeated(side(), [], runs(chaos, retries=1), {1: 99.0}) == ([], [])


def test_run_that_asked_for_another_one_does_not_count(chaos: Any) -> None:
    assert chaos.repeated(side(), [], runs(chaos, again=True), {1: 99.0}) == ([], [])


@pytest.mark.parametrize("pid", [WORKER, CHILD])
def test_second_run_is_excused_when_its_first_worker_died_in_between(chaos: Any, pid: int) -> None:
    assert chaos.repeated(side(deaths=[(pid, 105.0)]), [], runs(chaos), {1: 99.0}) == ([], [])


@pytest.mark.parametrize("death", [(OTHER, 105.0), (WORKER, 90.0), (WORKER, 120.0)])
def test_death_of_another_or_at_another_time_does_not_excuse(chaos: Any, death: tuple[int, float]) -> None:
    assert chaos.repeated(side(deaths=[death]), [], runs(chaos), {1: 99.0}) == ([], [1])


@pytest.mark.parametrize(
    ("away", "alone"),
    [((97.0, 98.0), [1]), ((98.0, 99.5), []), ((99.5, 99.9), []), ((105.0, 106.0), []), ((120.0, 121.0), [1])],
)
def test_death_of_redis_is_an_excuse_from_the_moment_of_sending(
    chaos: Any, away: tuple[float, float], alone: list[int]
) -> None:
    assert chaos.repeated(side(), [away], runs(chaos), {1: 99.0}) == ([], alone)


def test_run_that_a_pause_held_up_stood(chaos: Any) -> None:
    assert chaos.repeated(side(pauses=[(CHILD, 100.5, 109.0)]), [], runs(chaos), {1: 99.0}) == ([1], [])


def test_run_that_was_given_to_a_process_before_its_pause_stood(chaos: Any) -> None:
    assert chaos.repeated(side(pauses=[(OTHERS_CHILD, 99.5, 109.9)]), [], runs(chaos), {1: 99.0}) == ([1], [])


@pytest.mark.parametrize("pause", [(CHILD, 90.0, 99.0), (CHILD, 102.0, 109.0), (OTHERS_CHILD, 100.5, 109.0)])
def test_pause_outside_a_run_or_of_another_does_not_excuse(chaos: Any, pause: tuple[int, float, float]) -> None:
    assert chaos.repeated(side(pauses=[pause]), [], runs(chaos), {1: 99.0}) == ([], [1])

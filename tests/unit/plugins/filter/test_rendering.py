"""Values as they stand in files."""

from __future__ import annotations

import ast
import math
import subprocess

import pytest
from ansible_collections.celeryops.hybrid.plugins.filter import environment_line, python_literal

literal = python_literal.FilterModule().filters()["python_literal"]
line = environment_line.FilterModule().filters()["environment_line"]


class TaggedStr(str):
    """As Ansible hands strings over: a subclass."""


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        1.5,
        'it\'s "quoted"\n\\ and ü',
        [],
        {},
        [1, "a", None, [True]],
        {"reports.*": {"queue": "slow", "priority": 3}, "n": {1: 2}},
        {f"a.long.task.name.{n}": {"queue": f"a-long-queue-name-{n}", "options": list(range(40))} for n in range(5)},
    ],
)
def test_python_reads_back_what_was_written(value: object) -> None:
    assert ast.literal_eval(literal(value)) == value


def test_subclasses_become_plain() -> None:
    assert literal(TaggedStr("x")) == "'x'"
    assert literal({TaggedStr("a"): TaggedStr("b")}) == "{'a': 'b'}"


def test_long_values_get_a_line_for_each_entry() -> None:
    text = literal({"first": "x" * 60, "second": "y" * 60})
    assert text.splitlines()[0] == "{"
    assert text.splitlines()[1].startswith("    'first': ")


@pytest.mark.parametrize("value", [math.inf, math.nan, object(), {"a": {1, 2}}])
def test_invalid_setting_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        literal(value)


@pytest.mark.parametrize("value", ["plain", "", " blanks ", "a$HOME`id`\"'\\x", "50%d #no comment;", "ü"])
def test_a_shell_reads_back_what_was_written(value: str) -> None:
    script = f'{line(value, "NAME")}\nprintf %s "$NAME"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == value


def test_numbers_are_written_as_they_are() -> None:
    assert line(4, "WORKER_CONCURRENCY") == 'WORKER_CONCURRENCY="4"'


def test_line_break_is_refused_without_the_value() -> None:
    with pytest.raises(ValueError, match="SECRET has a line break") as caught:
        line("abc\ndef", "SECRET")
    assert "abc" not in str(caught.value)

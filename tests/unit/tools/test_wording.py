"""The wording check finds odd habits, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import wording


def habits(tmp_path: Path, text: str, name: str = "page.md") -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    return [words for _, words, _ in wording.found_in(path)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("'x' is no size", "is no"),
        ("see the role `redis`", "the role `redis"),
        ("run the playbook site", "the playbook site"),
        ("for the 1. of 3 times", "the 1. of"),
        ("Tell whether it runs", "Tell whether"),
        ("the ports in clear", "in clear"),
        ("it is put away", "put away"),
        ("waits for ever", "for ever"),
        ("made anew", "anew"),
        ("what it had in hand", "in hand"),
        ("Whoever needs one more", "Whoever"),
        ("a clean look", "clean look"),
        ("is refused with a sentence", "with a sentence"),
        ("def test_what_is_no_size_is_refused():", "is no"),
        ("holds 1 messages", "1 messages"),
    ],
)
def test_habit_is_found(tmp_path, text, words):
    assert habits(tmp_path, text) == [words]


@pytest.mark.parametrize(
    "text",
    [
        "There is no such queue.",
        "it is no longer there",
        "the `redis` role",
        "the site playbook",
        "attempt 1 of 3",
        "11 messages",
    ],
)
def test_plain_english_is_left_alone(tmp_path, text):
    assert habits(tmp_path, text) == []


def test_output_of_programs_in_a_page_is_not_read(tmp_path):
    text = "```console\n1 messages wait\n```\nmade anew\n"
    assert habits(tmp_path, text) == ["anew"]
    assert habits(tmp_path, text, "program.py") == ["1 messages", "anew"]

"""What a purge writes can be read again, to the byte; and what is stuck."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from celery_hybrid.recovery.tasks import InHand, Purged, RecoveryError, read

MESSAGE = b'{"body": "W10=", "headers": {"task": "shop.pay", "id": "7f3c"}, "properties": {"delivery_tag": "t"}}'


@pytest.mark.parametrize(
    ("element", "shown"),
    [
        (MESSAGE, "shop.pay"),
        (b"\xff\n\x00", None),
        ("ä\u2028\n".encode(), None),
        (b"", None),
        (b'{"headers": 1}', None),
    ],
)
def test_a_message_is_the_same_after_the_file(tmp_path: Path, element: bytes, shown: str | None) -> None:
    purged = Purged("p", 3, "celery", "celery\x06\x163", element)
    path = tmp_path / "file"
    path.write_text(purged.line() + '{"begun')
    assert read(path) == [purged]
    assert json.loads(purged.line())["task"] == shown


@pytest.mark.parametrize(
    "change", [{"element": None}, {"list": 1}, {"number": "x"}, {"purge": None}, {"encoding": "base64", "element": "%"}]
)
def test_line_that_is_not_a_message_is_refused_with_its_number(tmp_path: Path, change: dict[str, object]) -> None:
    line = Purged("p", 1, "q", "q", b"x").line()
    path = tmp_path / "file"
    path.write_text(line + json.dumps({**json.loads(line), **change}) + "\n")
    with pytest.raises(RecoveryError, match="line 2, is not a message of a purge"):
        read(path)


def test_stuck_is_what_no_worker_has() -> None:
    young = InHand("t", b"", 0.0, 5.0, "q", "task", "id", overdue=False)
    old = replace(young, age=100.0)
    overdue = replace(old, overdue=True)
    assert [each.stuck(gone=False) for each in (young, old, overdue)] == [False, False, True]
    assert [each.stuck(gone=True) for each in (young, old, overdue)] == [False, True, True]
    assert not replace(overdue, held=True).stuck(gone=True)

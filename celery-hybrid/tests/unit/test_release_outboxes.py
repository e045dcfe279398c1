"""Counting what waits in the outboxes of a host, without the application."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from celery_hybrid.delivery.outbox import Outbox
from celery_hybrid.release import outboxes as subject


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    made = Outbox(tmp_path / "outbox.sqlite3", max_records=10, max_bytes=1000)
    made.depth()
    return made


def add(outbox: Outbox, table: str) -> None:
    """Put a row into a table of an outbox, with nothing but what the table wants."""
    with closing(sqlite3.connect(outbox.path)) as database:
        columns = [row for row in database.execute(f"PRAGMA table_info({table})") if row[3] and not row[5]]
        names = ", ".join(f'"{row[1]}"' for row in columns)
        values = ", ".join("1" for _ in columns)
        database.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")  # noqa: S608
        database.commit()


def test_an_empty_outbox_is_not_reported(outbox: Outbox) -> None:
    assert subject.look(outbox.path.parent) == {"waiting": {}, "problems": []}


@pytest.mark.parametrize("table", ["records", "refused"])
def test_what_waits_and_what_was_set_aside_counts(outbox: Outbox, table: str) -> None:
    add(outbox, table)
    assert subject.look(outbox.path.parent) == {"waiting": {str(outbox.path): 1}, "problems": []}


def test_a_file_without_these_tables_and_a_missing_folder_hold_nothing(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "schedule.sqlite3")) as database:
        database.execute("CREATE TABLE other (x)")
    assert subject.look(tmp_path)["waiting"] == {}
    assert subject.look(tmp_path / "missing") == {"waiting": {}, "problems": []}


def test_a_file_that_is_not_a_database_is_a_problem(tmp_path: Path) -> None:
    broken = tmp_path / "outbox.sqlite3"
    broken.write_bytes(b"not a database, however long one looks at it" * 100)
    (problem,) = subject.look(tmp_path)["problems"]
    assert str(broken) in problem


def test_the_answer_is_one_line_of_json(outbox: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    add(outbox, "records")
    subject.main(base64.b64encode(json.dumps({"folder": str(outbox.path.parent)}).encode()).decode())
    assert json.loads(capsys.readouterr().out)["waiting"] == {str(outbox.path): 1}

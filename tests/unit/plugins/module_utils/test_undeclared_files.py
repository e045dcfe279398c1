"""Files that nobody declared."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils._undeclared_files import (
    difference,
    move_aside,
    undeclared,
)

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "redis-server.service.d"
    folder.mkdir()
    for name in ("celeryops.conf", "override.conf", "site-1.conf"):
        (folder / name).write_text(name)
    return folder


def test_what_is_allowed_stays(folder):
    found = undeclared([str(folder)], [], ["celeryops.conf", "site-*.conf"])
    assert found == [folder / "override.conf"]
    assert undeclared([str(folder)], [], ["celeryops.conf", f"{folder}/*"]) == []


def test_missing_folder_holds_nothing(tmp_path):
    assert undeclared([str(tmp_path / "missing")], [str(tmp_path / "missing.conf")], []) == []


def test_link_need_not_lead_anywhere(tmp_path):
    unit = tmp_path / "a.service"
    unit.symlink_to("/dev/null")
    lost = tmp_path / "b.service"
    lost.symlink_to(tmp_path / "nowhere")
    assert undeclared([], [str(unit), str(lost)], []) == [unit, lost]
    assert difference(unit)["actual"] == "masked"
    assert difference(lost)["actual"] == f"a link to {tmp_path}/nowhere"


def test_moved_aside_is_not_lost(folder, tmp_path):
    stray = folder / "override.conf"
    stray.chmod(0o600)
    moved = move_aside(stray, tmp_path / "backups", NOW)
    assert moved == tmp_path / "backups" / "20260102T030405.000000Z" / stray.relative_to("/")
    assert moved.read_text() == "override.conf"
    assert moved.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700
    assert not stray.exists()


def test_several_of_one_folder(folder, tmp_path):
    for name in ("override.conf", "site-1.conf"):
        move_aside(folder / name, tmp_path / "backups", NOW)
    assert sorted(path.name for path in folder.iterdir()) == ["celeryops.conf"]

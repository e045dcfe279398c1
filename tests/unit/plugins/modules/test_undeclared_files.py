"""Files that nobody declared, moved aside by the module's ``main()``."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.modules import undeclared_files as subject
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._drift import findings


@pytest.fixture
def move(tmp_path):
    def move(check=False):
        out = io.StringIO()
        arguments = {
            "folders": [str(tmp_path / "unit.d")],
            "absent": [str(tmp_path / "unit")],
            "allowed": ["celeryops.conf"],
            "backup": str(tmp_path / "backup"),
            "pending": str(tmp_path / "run" / "pending"),
            "_ansible_check_mode": check,
            "_ansible_diff": True,
        }
        with patch_module_args(arguments), redirect_stdout(out), pytest.raises(SystemExit):
            subject.main()
        return json.loads(out.getvalue())

    return move


def found(result):
    return {item.what: item.actual for item in findings("celeryops.hybrid.undeclared_files", "task", {}, result)}


def test_moved_files_are_reported_until_the_restart(move, tmp_path):
    (tmp_path / "unit.d").mkdir()
    unit, drop_in, own = tmp_path / "unit", tmp_path / "unit.d" / "stray.conf", tmp_path / "unit.d" / "celeryops.conf"
    for path in (unit, drop_in, own):
        path.touch()
    expected = {str(unit): "a file", str(drop_in): "a file"}
    assert found(move(check=True)) == expected
    assert not (tmp_path / "run").exists()
    result = move()
    assert found(result) == expected
    assert set(result["moved"]) == {str(unit), str(drop_in)}
    # The handler that would have restarted was not reached.
    waits = "moved aside, and still in use: a run ended before the restart"
    for check in (True, False):
        assert found(move(check=check)) == {str(unit): waits, str(drop_in): waits}
    # What the module 'files' keeps in the same file is its own.
    (tmp_path / "run" / "pending").write_text(f"{own}\n")
    own.unlink()
    assert not move()["changed"]
    (tmp_path / "run" / "pending").unlink()
    assert not move()["changed"]


def test_what_is_back_is_moved_again(move, tmp_path):
    unit = tmp_path / "unit"
    unit.touch()
    move()
    unit.touch()
    assert found(move()) == {str(unit): "a file"}
    assert not unit.exists()

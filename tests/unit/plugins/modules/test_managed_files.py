"""Folders, files and links, brought to their declaration by the module's ``main()``."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
from contextlib import redirect_stdout

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.modules import managed_files as subject
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._drift import SECRET, findings

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def bring(*entries, check=False, pending=None, backup=None):
    out = io.StringIO()
    arguments = {
        "files": [{**ME, **entry, "path": str(entry["path"])} for entry in entries],
        "pending": pending and str(pending),
        "backup": backup and str(backup),
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), redirect_stdout(out), pytest.raises(SystemExit):
        subject.main()
    return json.loads(out.getvalue())


def found(result):
    """Return what the drift report says of it, without the paths."""
    return [(item.declared, item.actual) for item in findings("celeryops.hybrid.managed_files", "task", {}, result)]


def assert_brought(entry, difference):
    """See it in check mode, bring it, and see nothing any more."""
    looked = bring(entry, check=True)
    assert (looked["changed"], looked["changed_paths"]) == (True, [str(entry["path"])])
    assert found(looked) == difference
    assert bring(entry, check=True) == looked
    changed = bring(entry)
    assert changed["changed_paths"] == looked["changed_paths"]
    assert found(changed) == difference
    again = bring(entry)
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "celeryops.conf"


def test_parents_of_a_new_folder_can_be_passed_whatever_the_umask_is(tmp_path):
    before = os.umask(0o077)
    try:
        bring({"path": tmp_path / "opt" / "celery" / "bin", "state": "directory", "mode": "0700"})
    finally:
        os.umask(before)
    modes = [oct((tmp_path / part).stat().st_mode & 0o777) for part in ("opt", "opt/celery", "opt/celery/bin")]
    assert modes == ["0o755", "0o755", "0o700"]


def test_foreign_file_is_saved_before_it_is_replaced(path, tmp_path):
    path.write_text("MNESIA_BASE=/srv/rabbitmq\n")
    entry = {"path": path, "content": "# Ansible managed\n\na 1\n", "mode": "0640"}
    bring(entry, backup=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").rglob(path.name)
    assert kept.read_text() == "MNESIA_BASE=/srv/rabbitmq\n"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    # Ours is not.
    bring({**entry, "content": "# Ansible managed\n\na 2\n"}, backup=tmp_path / "kept")
    assert list((tmp_path / "kept").rglob(path.name)) == [kept]


def test_missing_file(path):
    assert_brought({"path": path, "content": "a 1\nb 1\n", "mode": "0640"}, [("2 lines", "absent")])
    assert path.read_text() == "a 1\nb 1\n"
    assert oct(path.stat().st_mode) == "0o100640"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_edited_file(path):
    path.write_text("a 1\nb 2\n")
    path.chmod(0o640)
    assert_brought({"path": path, "content": "a 1\nb 1\n", "mode": "0640"}, [("b 1", "b 2")])


def test_text_and_mode_differ(path):
    path.write_text("a 2\n")
    path.chmod(0o666)
    looked = bring({"path": path, "content": "a 1\n", "mode": "0640"}, check=True)
    assert found(looked) == [("mode=0640", "mode=0666"), ("a 1", "a 2")]
    assert path.read_text() == "a 2\n"
    assert bring({"path": path, "content": "a 1\n", "mode": "0640"})["changed"]
    assert path.read_text() == "a 1\n"
    assert oct(path.stat().st_mode) == "0o100640"


def test_secret_is_not_shown(path):
    entry = {"path": path, "secret": "password=hush-1234\n", "mode": "0600"}
    path.write_text("password=hush-0000\n")
    path.chmod(0o600)
    looked = bring(entry, check=True)
    assert found(looked) == [(SECRET, SECRET)]
    assert "hush" not in json.dumps(looked)
    assert "hush" not in json.dumps(bring(entry))
    assert path.read_text() == entry["secret"]
    path.unlink()
    assert found(bring(entry, check=True)) == [("1 lines", "absent")]


def test_file_takes_the_place_of_a_link(path, tmp_path):
    (tmp_path / "elsewhere").write_text("mine\n")
    path.symlink_to(tmp_path / "elsewhere")
    assert bring({"path": path, "content": "ours\n", "mode": "0644"})["changed"]
    assert (path.is_symlink(), path.read_text()) == (False, "ours\n")
    assert (tmp_path / "elsewhere").read_text() == "mine\n"


def test_invalid_file_is_left_as_it_was(path):
    path.write_text("a 1\n")
    entry = {"path": path, "content": "a 2\n", "mode": "0644", "validate": "grep 'a 1' %s"}
    result = bring(entry)
    assert result["failed"]
    assert f"{path}: would not be valid" in result["msg"]
    assert path.read_text() == "a 1\n"
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_folder(tmp_path):
    folder = tmp_path / "new" / "conf.d"
    assert_brought({"path": folder, "state": "directory", "mode": "0750"}, [("directory", "absent")])
    folder.chmod(0o777)
    assert_brought({"path": folder, "state": "directory", "mode": "0750"}, [("mode=0750", "mode=0777")])


def test_link(path, tmp_path):
    assert_brought({"path": path, "state": "link", "target": "/nowhere"}, [("link", "absent")])
    other = {"path": path, "state": "link", "target": "/somewhere"}
    assert_brought(other, [("src=/somewhere", "src=/nowhere")])
    assert str(path.readlink()) == "/somewhere"


def test_absent(path):
    path.write_text("old\n")
    assert_brought({"path": path, "state": "absent"}, [("state=absent", "state=file")])
    assert not path.exists()


def test_what_is_of_another_type_is_left_alone(path):
    path.mkdir()
    for entry in ({"content": "a\n", "mode": "0644"}, {"state": "absent"}, {"state": "link", "target": "/x"}):
        result = bring({"path": path, **entry})
        assert result["failed"]
        assert "directory" in result["msg"]
    assert path.is_dir()


def test_finished_changes_are_reported_when_a_later_one_fails(path, tmp_path):
    done = {"path": path, "content": "a\n", "mode": "0644"}
    result = bring(done, {"path": tmp_path / "missing" / "b", "content": "b\n", "mode": "0644"})
    assert result["failed"]
    assert result["changed_paths"] == [str(path)]


def test_what_a_run_has_left_unused_is_reported_until_it_is_in_use(path, tmp_path):
    entries = (
        {"path": path, "content": "a 1\n", "mode": "0640"},
        {"path": tmp_path / "other", "content": "", "mode": "0640"},
    )
    pending = tmp_path / "run" / "redis.pending"
    assert bring(*entries, check=True, pending=pending)["changed"]
    assert not pending.exists()
    bring(*entries[1:])
    assert bring(*entries, pending=pending)["changed_paths"] == [str(path)]
    # The handler that would have restarted was not reached.
    for check in (True, False):
        again = bring(*entries, check=check, pending=pending)
        assert again["changed_paths"] == [str(path)]
        assert found(again) == [
            ("in use=yes", "in use=not since it was written: a run ended before the restart"),
        ]
    assert not bring(*entries[1:], pending=pending)["changed"]
    pending.unlink()
    assert not bring(*entries, pending=pending)["changed"]


def test_a_file_that_could_not_be_written_waits_as_well(path, tmp_path):
    entry = {"path": path, "content": "a 1\n", "mode": "0640", "validate": "false %s"}
    pending = tmp_path / "redis.pending"
    assert bring(entry, pending=pending)["failed"]
    assert bring({**entry, "validate": None}, pending=pending)["changed_paths"] == [str(path)]
    assert pending.read_text() == f"{path}\n"

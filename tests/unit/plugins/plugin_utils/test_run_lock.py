"""One run at a time on a host."""

from __future__ import annotations

import fcntl
import os
import subprocess

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _run_lock
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._run_lock import lock_file, own_file, take


@pytest.fixture
def path(tmp_path):
    return tmp_path / "host.lock"


@pytest.fixture
def other():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_first_gets_it_and_keeps_it(path):
    assert take(path, os.getpid()) is None
    assert take(path, os.getpid()) is None


def test_second_run_is_told_who_holds_the_lock(path, other):
    assert take(path, other.pid) is None
    holder = take(path, os.getpid())
    assert holder is not None
    assert holder["process"] == other.pid
    assert holder["user"]


def test_dead_holder_does_not_count(path, other):
    take(path, other.pid)
    other.kill()
    other.wait()
    assert take(path, os.getpid()) is None


def test_number_that_is_used_again_does_not_count(path, other, monkeypatch):
    take(path, other.pid)
    monkeypatch.setattr(_run_lock, "_began", lambda process: "later")
    assert take(path, os.getpid()) is None


@pytest.mark.parametrize("text", ["no json", "[]", '{"process": "x"}', '{"process": []}', ""])
def test_spoilt_file_does_not_count(path, text):
    own_file(path).write_text(text)
    assert take(path, os.getpid()) is None


def test_file_is_written_by_its_user_and_read_by_all(path):
    take(path, os.getpid())
    assert own_file(path).stat().st_mode & 0o777 == 0o644
    assert own_file(path).with_name(own_file(path).name + ".guard").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def written_by_another(path, monkeypatch):
    """Write a file as another user, which names a process."""

    def write(process, owner):
        take(path, process)
        other = own_file(path).rename(path.with_name(f"{path.name}.{os.getuid() + 1}"))
        monkeypatch.setattr(_run_lock, "_owner", lambda _: owner)
        return other

    return write


def test_run_of_another_user_counts(path, other, written_by_another):
    written_by_another(other.pid, os.getuid())
    assert take(path, os.getpid())["process"] == other.pid
    assert not own_file(path).exists()


def test_process_that_is_not_of_the_files_owner_does_not_count(path, other, written_by_another):
    written_by_another(other.pid, os.getuid() + 5)
    assert take(path, os.getpid()) is None


def test_pipe_and_link_of_another_user_do_not_count(path, tmp_path):
    os.mkfifo(path.with_name(f"{path.name}.1"))
    path.with_name(f"{path.name}.2").symlink_to(tmp_path / "elsewhere")
    assert take(path, os.getpid()) is None


def test_guard_that_is_a_link_or_a_pipe_is_refused(path, tmp_path):
    guard = own_file(path).with_name(own_file(path).name + ".guard")
    guard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        take(path, os.getpid())
    guard.unlink()
    os.mkfifo(guard)
    with pytest.raises(OSError, match="not a file of this user"):
        take(path, os.getpid())


def test_guard_that_stays_taken_ends_the_wait(path, monkeypatch):
    monkeypatch.setattr(_run_lock, "PATIENCE", 0.2)
    take(path, os.getpid())
    with own_file(path).with_name(own_file(path).name + ".guard").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process of this user"):
            take(path, os.getpid())


def test_name_of_the_file_is_harmless():
    assert lock_file("../x y/10.0.0.1").name == "celeryops-hybrid-.._x_y_10.0.0.1.lock"

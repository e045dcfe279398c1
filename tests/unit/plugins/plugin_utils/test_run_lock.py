"""One run at a time on a host."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _run_lock
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._run_lock import lock_file, take


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


def test_second_is_told_who_has_it(path, other):
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


def test_spoilt_file_does_not_count(path):
    path.write_text("no json")
    assert take(path, os.getpid()) is None


def test_file_is_for_all_users(path):
    take(path, os.getpid())
    assert path.stat().st_mode & 0o777 == 0o666


def test_link_is_refused(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        take(path, os.getpid())


def test_name_of_the_file_is_harmless():
    assert lock_file("../x y/10.0.0.1").name == "celeryops-hybrid-.._x_y_10.0.0.1.lock"

"""Archives of source trees: equal when the trees are."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from ansible.errors import AnsibleError
from ansible_collections.celeryops.hybrid.plugins.lookup.source_archive import LookupModule
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _source as subject


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    for name in ("pyproject.toml", "src/app/__init__.py", "src/app/build/tool.py", "src/app/data.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in (".git/HEAD", "build/x", "venv/bin/python", "src/app/__pycache__/a.pyc", "src/app.egg-info/PKG-INFO"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getnames()


def test_only_the_source_is_packed(tree: Path) -> None:
    assert names(subject.pack(tree, "app")) == [
        "app/pyproject.toml",
        "app/src/app/__init__.py",
        "app/src/app/data.txt",
        "app/src/app/build/tool.py",
    ]


def test_times_owners_and_leftovers_make_no_difference(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy)
    os.utime(copy / "pyproject.toml", (1, 1))
    (copy / "pyproject.toml").chmod(0o600)
    (copy / "dist").mkdir()
    (copy / "dist" / "app.whl").touch()
    assert subject.pack(tree, "app") == subject.pack(copy, "app")


def test_folders_at_the_top_can_be_left_out(tree: Path) -> None:
    before = subject.pack(tree, "app", ["tests"])
    (tree / "tests").mkdir()
    (tree / "tests" / "test_app.py").touch()
    assert subject.pack(tree, "app", ["tests"]) == before
    assert subject.pack(tree, "app") != before


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_every_other_change_makes_one(tree: Path, change: str) -> None:
    before = subject.digest(subject.pack(tree, "app"))
    path = tree / "src" / "app" / "data.txt"
    if change == "content":
        path.write_text("other")
    elif change == "name":
        path.rename(path.with_name("other.txt"))
    elif change == "mode":
        path.chmod(0o755)
    else:
        (tree / "link").symlink_to("pyproject.toml")
    assert subject.digest(subject.pack(tree, "app")) != before


def test_a_link_that_leads_out_is_refused(tree: Path) -> None:
    (tree / "secrets").symlink_to("/etc/passwd")
    with pytest.raises(subject.SourceError, match="leads out"):
        subject.pack(tree, "app")


def test_lookup_returns_path_name_and_checksum(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ansible import constants

    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    lookup = LookupModule()
    (found,) = lookup.run([str(tree)])
    assert found["name"] == "app.tar.gz"
    assert subject.digest(Path(found["path"]).read_bytes()) == found["checksum"]
    assert lookup.run([str(tree)]) == [found]
    wheel = tmp_path / "app-1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert lookup.run([str(wheel)])[0]["path"] == str(wheel)


def test_lookup_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match="no such directory or file"):
        LookupModule().run([str(tmp_path / "nothing")])

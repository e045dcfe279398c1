"""Virtual environments that were changed after they were built, found by the module's ``main()``."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils._virtual_environment import LARGEST_COPY
from ansible_collections.celeryops.hybrid.plugins.modules import virtual_environment as subject
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._drift import findings

SITE = "lib/python3.11/site-packages"


def run(path, check=False, **options):
    out = io.StringIO()
    arguments = {"path": str(path), **options, "_ansible_check_mode": check, "_ansible_diff": True}
    with patch_module_args(arguments), redirect_stdout(out), pytest.raises(SystemExit):
        subject.main()
    return json.loads(out.getvalue())


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write files as pip does."""
    metadata = site / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)


def build(path: Path, backup: Path | None = None, replaces: list[str] | None = None) -> dict:
    site = path / SITE
    site.mkdir(parents=True)
    (path / "bin").mkdir()
    (path / "bin" / "python").symlink_to("/usr/bin/python3")
    (path / "bin" / "celery").write_text("#!/opt/bin/python\n")
    (path / "bin" / "celery").chmod(0o755)
    (path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    install(site, "celery", "5.7.0", {"celery/__init__.py": "", "celery/app/base.py": "class Celery: ...\n"})
    install(site, "tzdata", "2025.3", {"tzdata/__init__.py": "", **{f"tzdata/{zone}": zone for zone in "abcdef"}})
    (site / "old_style.py").write_text("")
    (site / "old_style-1.0-py3.11.egg-info").mkdir()
    # As the role does.
    result = run(path, state="recorded", backup=str(backup), replaces=replaces or [])
    (path / "complete.json").write_text("{}\n")
    return result


@pytest.fixture
def wanted(tmp_path):
    return tmp_path / "environments" / "4711"


@pytest.fixture
def link(tmp_path, wanted):
    link = tmp_path / "venv"
    link.symlink_to(wanted)
    return link


def found(result):
    told = findings("celeryops.hybrid.virtual_environment", "task", {}, result)
    return {item.what: (item.layer, item.declared, item.actual) for item in told}


def test_bare_host_has_none_and_nothing_differs(wanted, link):
    for check in (True, False):
        result = run(wanted, check=check, link=str(link))
        assert (result["changed"], result["complete"], result["environment"]) == (False, False, str(wanted))
        assert result["differences"] == []
    assert not wanted.parent.exists()


def test_environment_as_it_was_built_is_used(wanted, link):
    assert build(wanted)["changed"]
    for cache in (wanted / SITE / "celery" / "__pycache__", wanted / "__pycache__"):
        cache.mkdir()
        (cache / "base.cpython-311.pyc").write_bytes(b"x")
    result = run(wanted, link=str(link))
    assert (result["changed"], result["complete"], result["damaged"]) == (False, True, [])
    assert not run(wanted, state="recorded")["changed"]


def broken(change):
    return pytest.param(change, id=change.__name__)


def edited(site):
    (site / "celery/app/base.py").write_text("class Celery: pass\n")
    return {f"{site}/celery/app/base.py": ("file", "as it was installed", "other content")}


def removed(site):
    (site / "celery/app/base.py").unlink()
    return {f"{site}/celery/app/base.py": ("file", "a file", "absent")}


def stray_pth(site):
    (site / "stray.pth").write_text("import os\n")
    return {f"{site}/stray.pth": ("file", "absent", "a file")}


def extra_module(site):
    (site / "celery/app/evil.py").write_text("")
    return {f"{site}/celery/app/evil.py": ("file", "absent", "a file")}


def module_without_source(site):
    (site / "evil.pyc").write_bytes(b"x")
    return {f"{site}/evil.pyc": ("file", "absent", "a file")}


def extra_command(site):
    (site.parents[2] / "bin" / "x").touch()
    return {f"{site.parents[2]}/bin/x": ("file", "absent", "a file")}


def other_python(site):
    python = site.parents[2] / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/local/bin/python3")
    return {str(python): ("file", "a link to /usr/bin/python3", "a link to /usr/local/bin/python3")}


def link_instead_of_a_file(site):
    module = site / "celery/app/base.py"
    module.unlink()
    module.symlink_to("/tmp/base.py")
    return {str(module): ("file", "a file", "a link to /tmp/base.py")}


def closed_folder(site):
    mode = (site / "celery").stat().st_mode
    (site / "celery").chmod(0o700)
    return {f"{site}/celery": ("file", f"mode={mode & 0o7777:04o}", "mode=0700")}


def writable_module(site):
    mode = (site / "celery/app/base.py").stat().st_mode
    (site / "celery/app/base.py").chmod(0o666)
    return {f"{site}/celery/app/base.py": ("file", f"mode={mode & 0o7777:04o}", "mode=0666")}


def _install(site, version):
    (site / "tzdata-2025.3.dist-info").rename(site / f"tzdata-{version}.dist-info")
    for number, path in enumerate(sorted((site / "tzdata").iterdir())):
        path.write_text(f"other {number}")


def downgraded_package(site):
    _install(site, "2024.1")
    environment = site.parents[2]
    many = "7 files differ, such as __init__.py"
    return {
        f"package tzdata in {environment}": ("package", "2025.3", "2024.1"),
        f"{site}/tzdata": ("file", "as it was installed", many),
    }


def package_installed_by_hand(site):
    install(site, "ipdb", "0.13.13", {"ipdb.py": ""})
    return {
        f"package ipdb in {site.parents[2]}": ("package", "absent", "0.13.13"),
        f"{site}/ipdb.py": ("file", "absent", "a file"),
    }


def package_removed_by_hand(site):
    for path in (site / "old_style-1.0-py3.11.egg-info", site / "tzdata-2025.3.dist-info"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    environment = site.parents[2]
    return {
        f"package old-style in {environment}": ("package", "1.0", "absent"),
        f"package tzdata in {environment}": ("package", "2025.3", "absent"),
    }


def without_its_record(site):
    (site.parents[2] / "contents.json").unlink()
    return {f"{site.parents[2]}/contents.json": ("file", "a file", "absent")}


def with_a_broken_record(site):
    (site.parents[2] / "contents.json").write_text("{")
    return {f"{site.parents[2]}/contents.json": ("file", "as it was installed", "other content")}


def without_its_mark(site):
    (site.parents[2] / "complete.json").unlink()
    return {f"{site.parents[2]}/complete.json": ("file", "a file", "absent")}


@pytest.mark.parametrize(
    "change",
    [
        broken(change)
        for change in (
            edited,
            removed,
            stray_pth,
            extra_module,
            module_without_source,
            extra_command,
            other_python,
            link_instead_of_a_file,
            closed_folder,
            writable_module,
            downgraded_package,
            package_installed_by_hand,
            package_removed_by_hand,
            without_its_record,
            with_a_broken_record,
            without_its_mark,
        )
    ],
)
def test_change_is_reported_and_the_next_is_built_beside(change, wanted, link, tmp_path):
    build(wanted)
    expected = change(wanted / SITE)
    before = sorted(map(str, wanted.rglob("*")))
    for check in (True, False):
        result = run(wanted, check=check, link=str(link))
        assert found(result) == expected
        assert (result["changed"], result["complete"]) == (True, False)
        assert result["damaged"] == [str(wanted)]
        assert result["environment"] == f"{wanted}-2"
        assert len(result["diff"]["before"].splitlines()) == len(expected)
    # Nothing in the one that workers may run in has been touched.
    assert sorted(map(str, wanted.rglob("*"))) == before

    build(Path(f"{wanted}-2"), tmp_path / "backup", result["damaged"])
    # Before the link leads to it, and after.
    for target in (wanted, f"{wanted}-2"):
        link.unlink()
        link.symlink_to(target)
        result = run(wanted, link=str(link))
        assert (result["changed"], result["complete"], result["environment"]) == (False, True, f"{wanted}-2")


def test_the_one_in_use_is_looked_at_first_and_a_third_is_built(wanted, link):
    second = Path(f"{wanted}-2")
    for path in (wanted, second):
        build(path)
        stray_pth(path / SITE)
    link.unlink()
    link.symlink_to(second)
    result = run(wanted, link=str(link))
    assert result["damaged"] == [str(second), str(wanted)]
    assert result["environment"] == f"{wanted}-3"
    assert list(found(result)) == [f"{second}/{SITE}/stray.pth"]


def test_the_place_of_a_removed_one_is_used_again(wanted, link):
    build(Path(f"{wanted}-3"))
    stray_pth(Path(f"{wanted}-3") / SITE)
    link.unlink()
    link.symlink_to(f"{wanted}-3")
    assert run(wanted, link=str(link))["environment"] == str(wanted)


def test_what_an_interrupted_build_has_left_is_a_place_to_build(wanted, link):
    (wanted / SITE).mkdir(parents=True)
    other = link.with_name("other")
    other.symlink_to(wanted.parent)
    result = run(wanted, link=str(other))
    assert (result["changed"], result["environment"]) == (False, str(wanted))
    # But not the one in use.
    result = run(wanted, link=str(link))
    assert (result["changed"], result["environment"]) == (True, f"{wanted}-2")
    assert list(found(result)) == [f"{wanted}/complete.json"]


def test_others_are_not_candidates(wanted, link):
    for name in ("4711-copy", "4711-02", "47112", "471"):
        build(wanted.with_name(name))
    assert run(wanted, link=str(link)) == {**run(wanted, link=str(link)), "environment": str(wanted), "damaged": []}


def test_changed_and_added_files_are_kept(wanted, tmp_path):
    build(wanted)
    site = wanted / SITE
    edited(site)
    stray_pth(site)
    (site / "celery/__init__.py").chmod(0o600)
    (site / "big.bin").write_bytes(b"x" * (LARGEST_COPY + 1))
    (site / "lost").symlink_to("/nowhere")
    kept = build(Path(f"{wanted}-2"), tmp_path / "backup", [str(wanted)])["kept"]
    assert set(kept) == {f"{site}/celery/app/base.py", f"{site}/stray.pth"}
    assert Path(kept[f"{site}/stray.pth"]).read_text() == "import os\n"
    assert kept[f"{site}/stray.pth"].endswith(f"{site}/stray.pth")


def test_check_mode_records_nothing(wanted):
    wanted.mkdir(parents=True)
    assert not run(wanted, check=True, state="recorded")["changed"]
    assert list(wanted.iterdir()) == []


def test_missing_folder_is_an_error_with_its_path(wanted):
    result = run(wanted, state="recorded")
    assert result["failed"]
    assert str(wanted) in result["msg"]


def test_record_is_readable_whatever_the_umask_is(wanted):
    before = os.umask(0o077)
    try:
        build(wanted)
    finally:
        os.umask(before)
    assert (wanted / "contents.json").stat().st_mode & 0o777 == 0o644

"""The tool that makes the test hosts: what it decides, without a container."""

from __future__ import annotations

import io
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.hosts import testhosts

GOOD = {
    "ansible_host": "10.213.1.11",
    "test_host_image": "debian12",
    "test_host_project": "example",
    "test_host_subnet": "10.213.1.0/24",
}


def test_an_ordinary_machine_keeps_the_defaults_of_podman() -> None:
    text = testhosts.container_configuration(
        unified_cgroups=True, may_raise_limits=True, hard_files=20000, hard_processes=32768
    )
    assert text == ""


def test_a_hybrid_hierarchy_needs_runc_and_fixed_limits_are_not_exceeded() -> None:
    text = testhosts.container_configuration(
        unified_cgroups=False, may_raise_limits=False, hard_files=20000, hard_processes=32768
    )
    assert tomllib.loads(text) == {
        "engine": {"runtime": "runc"},
        "containers": {"default_ulimits": ["nofile=20000:20000", "nproc=32768:32768"]},
    }


@pytest.mark.parametrize(
    ("status", "expected"), [("CapEff:\t000001ffffffffff", True), ("CapEff:\t000001fffeffffff", False)]
)
def test_capability_is_read_from_the_status(status: str, expected: bool) -> None:
    assert testhosts.has_capability(testhosts.CAP_SYS_RESOURCE, f"Name:\tx\n{status}\n") is expected


def test_a_host_is_described_by_its_variables() -> None:
    host = testhosts.host_from_variables("broker1", GOOD)
    assert (host.container, host.network, host.address) == ("example-broker1", "celeryops-example", "10.213.1.11")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ansible_host": ""}, "sets no ansible_host"),
        ({"test_host_image": "debian9"}, "known are debian12, debian13"),
        ({"ansible_host": "10.99.0.1"}, "not in test_host_subnet"),
    ],
)
def test_a_wrong_variable_is_named(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(testhosts.TestHostsError, match=sentence):
        testhosts.host_from_variables("broker1", {**GOOD, **change})


def test_an_image_is_another_one_when_its_contents_change(monkeypatch: pytest.MonkeyPatch) -> None:
    before = testhosts.image_tag("debian12")
    monkeypatch.setattr(testhosts, "PACKAGES", (*testhosts.PACKAGES, "vim"))
    assert testhosts.image_tag("debian12") != before


def test_files_keep_content_and_mode_on_their_way_into_a_host() -> None:
    with tarfile.open(fileobj=io.BytesIO(testhosts.tar_of({"etc/key": (b"secret", 0o600)}))) as archive:
        member = archive.getmember("etc/key")
        extracted = archive.extractfile(member)
        assert extracted is not None
        assert (extracted.read(), member.mode) == (b"secret", 0o600)


def test_a_missing_program_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testhosts.shutil, "which", lambda program, path=None: None if program == "podman" else "/x")
    with pytest.raises(testhosts.TestHostsError, match=r"podman.*make system-packages"):
        testhosts.prepare_machine()


def test_hosts_of_another_checkout_are_left_alone_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(testhosts.TAKE_OVER, raising=False)
    with pytest.raises(testhosts.TestHostsError, match=r"example belong to /elsewhere.*TEST_HOSTS_TAKE_OVER=1"):
        testhosts.take_over("example", "/elsewhere")


def test_hosts_in_use_are_never_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(testhosts.TAKE_OVER, "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(testhosts.TestHostsError, match="where a program runs"):
        testhosts.take_over("example", str(tmp_path))


def test_unused_hosts_are_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    removed = []
    monkeypatch.setenv(testhosts.TAKE_OVER, "1")
    monkeypatch.setattr(testhosts, "remove", lambda *what: removed.append(what))
    testhosts.take_over("example", str(tmp_path / "gone"))
    assert removed == [("example", str(tmp_path / "gone"))]

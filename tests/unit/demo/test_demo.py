"""The demo: what it reads from the output of a playbook, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import demo

OUTPUT = """\
PLAY [Broker] ***
        ok      broker.reachable          redis://10.213.10.11:6379      2 ms
        FAILED  canary.celery             timed out                  10000 ms
PLAY RECAP *********************************************************************
broker1                    : ok=12   changed=0    unreachable=0    failed=0    skipped=3    rescued=0    ignored=0
""".splitlines()


def test_recap_is_a_line_a_host() -> None:
    assert demo.recap(OUTPUT) == ["broker1      changed=0   ok=12"]


def test_recap_of_an_output_without_one_is_empty() -> None:
    assert demo.recap(["PLAY [Broker] ***"]) == []


def test_checks_are_found_whatever_their_outcome() -> None:
    assert [line.split()[:2] for line in demo.checks(OUTPUT)] == [
        ["ok", "broker.reachable"],
        ["FAILED", "canary.celery"],
    ]


def test_inventory_names_the_wanted_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO", tmp_path)
    monkeypatch.setattr(demo, "INVENTORY", tmp_path / "inventory.yml")
    demo.write_inventory(2, "debian13")
    inventory = yaml.safe_load((tmp_path / "inventory.yml").read_text())["all"]
    assert list(inventory["children"]["worker"]["hosts"]) == ["worker1", "worker2"]
    assert inventory["vars"]["test_host_image"] == "debian13"
    assert list(demo.addresses()) == ["broker1", "results1", "worker1", "worker2"]


@pytest.mark.parametrize("workers", ["0", "ten", "-1", "", "10"])
def test_a_wrong_number_of_workers_is_refused(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["up", f"--workers={workers}"]) == 1
    assert "DEMO_WORKERS" in capsys.readouterr().err


def test_a_shell_needs_a_host_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "INVENTORY", tmp_path / "inventory.yml")
    assert demo.main(["ssh", "worker1"]) == 1
    assert "make demo" in capsys.readouterr().err

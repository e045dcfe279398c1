"""What the drift report makes of the results of tasks."""

from __future__ import annotations

import json

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _drift
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._drift import SECRET, DriftFinding, Report, findings


@pytest.mark.parametrize(
    ("module", "arguments", "result", "expected"),
    [
        ("ansible.builtin.template", {"dest": "/etc/x"}, {"changed": False}, []),
        (
            "ansible.builtin.template",
            {"dest": "/etc/x"},
            {"changed": True, "diff": [{"before": "a 1\nb 1\n", "after": "a 2\nb 1\n", "before_header": "/etc/x"}]},
            [DriftFinding("file", "/etc/x", "a 2", "a 1")],
        ),
        (
            "ansible.builtin.template",
            {"dest": "/etc/x"},
            {"changed": True, "diff": [{"before": "", "after": "a\nb\n"}]},
            [DriftFinding("file", "/etc/x", "2 lines", "absent")],
        ),
        (
            "template",
            {"dest": "/etc/x"},
            {
                "changed": True,
                "diff": {"before": {"path": "/etc/x", "mode": "0644"}, "after": {"path": "/etc/x", "mode": "0640"}},
            },
            [DriftFinding("file", "/etc/x", "mode=0640", "mode=0644")],
        ),
        (
            "template",
            {"dest": "/etc/x"},
            {"changed": True, "censored": "hidden"},
            [DriftFinding("file", "/etc/x", SECRET, SECRET)],
        ),
        (
            "apt",
            {"name": ["a", "b"]},
            {"changed": True, "stdout": "Inst b (1.0 Debian)\nConf b"},
            [DriftFinding("package", "package b", "installed", "not installed")],
        ),
        (
            "dpkg_selections",
            {"name": "a"},
            {"changed": True, "before": "hold", "after": "install"},
            [DriftFinding("package", "package a", "install", "hold")],
        ),
        (
            "systemd_service",
            {"name": "a", "state": "started", "enabled": True},
            {
                "changed": True,
                "status": {
                    "LoadState": "masked",
                    "ActiveState": "inactive",
                    "SubState": "dead",
                    "UnitFileState": "masked",
                },
            },
            [DriftFinding("runtime", "service a", "not masked, started, enabled", "masked, inactive (dead), masked")],
        ),
        (
            "celeryops.hybrid.redis_runtime",
            {},
            {
                "changed": False,
                "differences": [
                    {
                        "layer": "runtime",
                        "kind": "setting",
                        "name": "tcp-backlog",
                        "action": "restart",
                        "actual": "1",
                        "declared": "2",
                    }
                ],
            },
            [DriftFinding("runtime", "setting tcp-backlog", "2", "1", note="needs a restart")],
        ),
        (
            "celeryops.hybrid.rabbitmq_topology",
            {},
            {
                "changed": True,
                "differences": [
                    {
                        "layer": "object",
                        "kind": "queues",
                        "name": "celery/q",
                        "action": "conflict",
                        "actual": {"durable": True, "arguments": {"x": 1}},
                        "declared": {"durable": True, "arguments": {}},
                        "sentence": "Move the messages.",
                    }
                ],
            },
            [
                DriftFinding(
                    "object", "queues celery/q", "arguments=x=absent", "arguments=x=1", note="Move the messages."
                )
            ],
        ),
        ("debug", {}, {"changed": True, "msg": "It is so."}, [DriftFinding("runtime", "Name", "", "It is so.")]),
        ("command", {}, {"changed": True}, [DriftFinding("runtime", "Name", "done", "not done")]),
    ],
)
def test_findings(module, arguments, result, expected):
    assert findings(module, "Name", arguments, result) == expected


def test_of_lists_only_what_differs():
    told = {
        "layer": "object",
        "kind": "user",
        "name": "a",
        "actual": {"commands": ["-@all", "+@list", "+@admin"]},
        "declared": {"commands": ["-@all", "+@list"]},
    }
    expected = [DriftFinding("object", "user a", "commands=without +@admin", "commands=+@admin")]
    assert findings("redis_runtime", "", {}, {"differences": [told]}) == expected


def test_equal_sides_are_a_secret():
    told = {"differences": [{"layer": "object", "kind": "user", "name": "a", "actual": "x", "declared": "x"}]}
    assert findings("redis_runtime", "", {}, told) == [DriftFinding("object", "user a", SECRET, SECRET)]


@pytest.fixture
def report():
    made = Report()
    for host in ("a", "b"):
        made.hosts[host].looked = True
    return made


def test_clean(report):
    assert report.exit_code == 0
    assert "Clean: 2 hosts as declared." in report.table()


def test_drift(report):
    report.add("a", [DriftFinding("file", "/etc/x", "declared", "actual", "2026-01-01")] * 2)
    assert report.exit_code == 3
    table = report.table()
    assert "a: 1 difference" in table
    assert "b: clean" in table
    assert "since 2026-01-01" in table
    data = json.loads(json.dumps(report.data("now", 1.26)))
    assert data["hosts"]["a"]["differences"][0]["actual"] == "actual"
    assert data["seconds"] == 1.3
    assert 'celeryops_drift{host="a",layer="file"} 1' in report.metrics(1.0, 1.0)
    assert 'celeryops_drift{host="b",layer="file"} 0' in report.metrics(1.0, 1.0)


def test_blind(report):
    report.add("a", [DriftFinding("file", "/etc/x", "declared", "actual")])
    report.hosts["b"].problem = "unreachable: no route"
    assert report.exit_code == 2
    assert "Drift: 1 difference on 1 of 2 hosts" in report.verdict()
    assert "Could not look, or not to the end: b." in report.verdict()
    assert 'celeryops_drift_looked{host="b"} 0' in report.metrics(1.0, 1.0)
    assert "celeryops_drift_exit_code 2" in report.metrics(1.0, 1.0)
    # Ansible's own code.
    report.hosts["b"].unreachable = True
    assert report.exit_code == report.data("now", 1.0)["exit_code"] == 4
    assert "celeryops_drift_exit_code 4" in report.metrics(1.0, 1.0)


def test_no_host_is_not_clean():
    assert Report().exit_code == 2
    assert "No host" in Report().verdict()


def test_long_cells_go_on_in_the_next_line(report):
    report.add("a", [DriftFinding("file", "word " * 20, "declared", "actual")])
    lines = report.table().splitlines()
    assert max(map(len, lines)) < 140


def test_file_is_whole_or_absent(tmp_path):
    _drift.write_atomically(str(tmp_path / "r.json"), "text")
    assert (tmp_path / "r.json").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(OSError, match="No such file"):
        _drift.write_atomically(str(tmp_path / "missing" / "r.json"), "text")

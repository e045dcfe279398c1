"""Pages and dashboards: made from one list, and of expressions that Prometheus understands."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
SPEC = importlib.util.spec_from_file_location("dashboards", ROOT / "tools" / "dashboards.py")
assert SPEC
assert SPEC.loader
subject = importlib.util.module_from_spec(SPEC)
# Where a dataclass looks for the types of its fields.
sys.modules["dashboards"] = subject
SPEC.loader.exec_module(subject)

PANELS = [*subject.OVERVIEW, *subject.ONE_TASK]
EXPRESSIONS = [expr for panel in PANELS for expr, _ in panel.curves]


@pytest.mark.parametrize("path", subject.made_files(), ids=lambda path: path.name)
def test_file_is_what_the_list_of_panels_makes(path):
    assert path.read_text() == subject.made_files()[path], "run tools/dashboards.py"


def test_page_and_dashboard_show_the_same_expressions():
    for name, panels in (("celery", subject.OVERVIEW), ("task", subject.ONE_TASK)):
        wanted = [expr for panel in panels for expr, _ in panel.curves]
        page = (subject.FILES / "consoles" / f"{name}.html").read_text()
        shown = json.loads(re.search(r'id="panels">(.*?)</script>', page, re.DOTALL)[1])
        assert [curve["expr"] for panel in shown for curve in panel["curves"]] == wanted
        dashboard = json.loads((subject.FILES / "dashboards" / f"{name}.json").read_text())
        assert [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] == wanted


def test_page_loads_nothing_from_elsewhere():
    for name in ("celery", "task"):
        page = (subject.FILES / "consoles" / f"{name}.html").read_text()
        assert re.findall(r"(?:src|href)=\"?https?:", page) == []


def test_panels_of_a_dashboard_do_not_overlap():
    for name in ("celery", "task"):
        dashboard = json.loads((subject.FILES / "dashboards" / f"{name}.json").read_text())
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        assert len(places) == len(set(places))
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_understands_every_expression(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$task", "shop.pay")}
        for number, expr in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""Alerts: tested by promtool, named as diagnose names symptoms, each with an entry in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
RULES = ROOT / "roles" / "monitoring" / "files" / "rules.yml"
CASES = ROOT / "tests" / "monitoring" / "rules_test.yml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
HEADINGS = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert["alert"])
def test_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "action", "runbook_url"}


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert["alert"])
def test_alert_leads_to_the_entry_of_its_symptom_in_the_runbook(alert):
    symptom = alert["labels"]["symptom"]
    assert symptom in HEADINGS
    # As GitHub makes an anchor of a heading.
    anchor = re.sub(r"[^a-z0-9_ -]", "", symptom).replace(" ", "-")
    assert alert["annotations"]["runbook_url"].endswith(f"/docs/runbook.md#{anchor}")


def test_every_symptom_of_diagnose_has_an_entry_in_the_runbook():
    source = (ROOT / "plugins" / "plugin_utils" / "_diagnose_symptoms.py").read_text()
    names = set(re.findall(r'Finding\(\s*"([a-z_.]+)"', source))
    assert len(names) > 25
    assert names <= HEADINGS


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    fires, rests = set(), set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            (fires if expected["exp_alerts"] else rests).add(expected["alertname"])
    assert fires == rests == set(ALERTS)


def test_cases_evaluate_every_group_in_the_order_of_the_rules():
    groups = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    assert yaml.safe_load(CASES.read_text())["group_eval_order"] == groups


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_promtool_agrees_with_every_case():
    done = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils import _verify
from ansible_collections.celeryops.hybrid.plugins.modules import celery_verify as subject

PASSWORD = "a-long-Passw0rd-of-the-broker"
GOOD = {
    "checks": [
        {"name": "broker.reachable", "ok": True, "expected": "e", "actual": "a", "remedy": "", "milliseconds": 1.0}
    ],
    "skipped": {},
}
BAD = {
    "checks": [
        *GOOD["checks"],
        {
            "name": "canary.archive[celery]",
            "ok": False,
            "expected": "a record",
            "actual": f"none, redis://celery:{PASSWORD}@h",
            "remedy": "Restart it.",
            "milliseconds": 2.0,
        },
    ],
    "skipped": {"canary.message": "", "canary.refused[celery]": "nobody may look"},
}


@pytest.fixture
def environment_file(tmp_path):
    path = tmp_path / "celery.env"
    path.write_text(f"CELERY_BROKER_URL=redis://celery:{PASSWORD}@h:6379/0\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def run_module(monkeypatch, environment_file, systemd_run):
    def run(answer, **arguments):
        asked = {}

        def runner(**given):
            asked.update(given)
            if isinstance(answer, Exception):
                raise answer
            lines = [{"check": check} for check in answer["checks"]] + [{"end": {}, "skipped": answer["skipped"]}]
            return "\n".join(map(json.dumps, lines)) + "\n"

        monkeypatch.setattr(_verify, "run", runner)
        out = io.StringIO()
        with (
            patch_module_args({"environment_file": str(environment_file), **arguments}),
            redirect_stdout(out),
            pytest.raises(SystemExit) as ended,
        ):
            subject.main()
        return ended.value.code, json.loads(out.getvalue()), asked

    return run


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_good_host_passes_in_check_mode_as_well(run_module, check_mode):
    code, result, asked = run_module(GOOD, app="payments", _ansible_check_mode=check_mode)
    assert code == 0
    assert result["changed"] is False
    assert result["summary"] == {"checks": 3, "passed": 3, "failed": 0}
    assert "broker.reachable" in result["table"]
    assert asked["request"]["app"] == "payments"
    assert asked["request"]["canary_timeout"] == 15
    assert asked["python"] == "/opt/celery/venv/bin/python"
    assert asked["user"] == "celery"


def test_bad_host_fails_with_reasons_and_all_checks(run_module):
    code, result, _ = run_module(BAD)
    assert code == 1
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["msg"].startswith("canary.archive[celery]: none, ")
    assert result["msg"].endswith("expected: a record. Restart it.")
    assert len(result["checks"]) == 4
    assert result["skipped_checks"] == ["canary.message", "canary.refused[celery]"]
    assert result["skipped_reasons"] == {"canary.refused[celery]": "nobody may look"}


def test_no_secret_leaves_the_module(run_module):
    _, result, _ = run_module(BAD)
    assert PASSWORD not in json.dumps(result)


def test_verifier_that_cannot_be_run_fails_with_a_reason(run_module):
    code, result, _ = run_module(_verify.RunError("there is no /opt/celery/venv/bin/python", "Run the site playbook."))
    assert code == 1
    assert result["msg"] == (
        "environment.python: there is no /opt/celery/venv/bin/python; expected: /opt/celery/venv/bin/python runs "
        "celery_hybrid.verify as user celery. Run the site playbook."
    )


def test_missing_environment_file_fails_with_a_reason(run_module, environment_file):
    environment_file.unlink()
    code, result, asked = run_module(GOOD)
    assert code == 1
    assert "environment.file: there is no " in result["msg"]
    assert not asked


def test_facts_are_handed_on(run_module):
    facts = {"host": "broker1", "maxmemory_policy": "noeviction", "maxclients": "9", "connected_clients": "1"}
    _, _, asked = run_module(GOOD, broker_facts=facts, results_facts={"host": "results1", "queues": [{"name": "q"}]})
    assert asked["request"]["broker_facts"] == {**facts, "error": None}
    assert asked["request"]["results_facts"]["queues"] == [{"name": "q"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": {"a": "b"}}, "nodes"),
        ({"timeout": "soon"}, "timeout"),
        ({"ap": "payments"}, "Unsupported parameters"),
        ({"broker_facts": {"maxmemory": "1"}}, "maxmemory"),
    ],
)
def test_wrong_arguments_are_refused(run_module, arguments, message):
    code, result, asked = run_module(GOOD, **arguments)
    assert code == 1
    assert message in result["msg"]
    assert not asked


def documented(options):
    return {
        name: {
            "type": option["type"],
            **({"default": option["default"]} if "default" in option else {}),
            **({"no_log": True} if name == "password" else {}),
            **({"elements": option["elements"]} if "elements" in option else {}),
            **({"options": documented(option["suboptions"])} if "suboptions" in option else {}),
        }
        for name, option in options.items()
    }


def test_the_documentation_says_what_the_arguments_are():
    assert documented(yaml.safe_load(subject.DOCUMENTATION)["options"]) == subject.ARGUMENTS


def test_returned_values_are_documented(run_module):
    _, result, _ = run_module(GOOD)
    values = set(yaml.safe_load(subject.RETURN))
    assert values == set(result) - {"changed", "invocation"}
    contains = yaml.safe_load(subject.RETURN)["checks"]["contains"]
    assert set(contains) == set(result["checks"][0])

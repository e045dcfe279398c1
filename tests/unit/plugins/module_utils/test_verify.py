from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _verify as subject

PASSWORD = "Pa55:w/ord@2#9"
ENCODED = "Pa55%3Aw%2Ford%402%239"
CHECK = {"name": "a.b", "ok": True, "expected": "e", "actual": "x", "remedy": "", "milliseconds": 1.5}
END = '{"end": {}, "skipped": {"c.d": ""}}\n'


def answer(**changes):
    return json.dumps({"check": {**CHECK, **changes}}) + "\n" + END


def test_an_answer_is_read():
    checks, skipped, ended = subject.parse_answer(answer(blocked=True))
    assert checks == [{**CHECK, "blocked": True}]
    assert skipped == {"c.d": ""}
    assert ended


@pytest.mark.parametrize(("text", "count"), [("", 0), (answer().replace(END, ""), 1), (answer()[:-20], 1)])
def test_an_answer_that_was_cut_short_keeps_what_was_said(text, count):
    checks, _, ended = subject.parse_answer(text)
    assert len(checks) == count
    assert not ended


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n{}\n", "is not JSON: 'hello'"),
        ("[]\n", "malformed check: []"),
        ("{}\n", "malformed check: {}"),
        (END, "holds no checks"),
        ('{"check": "x"}\n', 'malformed check: {"check": "x"}'),
        ('{"check": {"name": "a"}}\n', "malformed check"),
        (answer(ok="yes"), "malformed check"),
        (answer(milliseconds="1"), "malformed check"),
    ],
)
def test_a_malformed_answer_is_refused(text, message):
    with pytest.raises(subject.RunError, match="the verifier's answer") as caught:
        subject.parse_answer(text)
    assert message in caught.value.actual
    assert "same version" in caught.value.remedy


def test_table_and_message():
    outcome = subject.Outcome()
    outcome.add("one", True, "e", "fine", milliseconds=1.26)
    outcome.add("number.two", False, "two", "three", "Make it two.")
    outcome.checks.append({**outcome.checks[1], "name": "four", "blocked": True})
    outcome.skipped = {"five": "", "six": "nobody may look"}
    assert outcome.table().splitlines() == [
        "ok      one              1.3 ms  fine",
        "FAILED  number.two       0.0 ms  three",
        "FAILED  four             0.0 ms  three",
        "-       five                     left out",
        "-       six                      left out: nobody may look",
        "1 of 3 checks passed",
    ]
    assert outcome.message() == "number.two: three; expected: two. Make it two.\nNot run because of these: four."
    assert outcome.summary() == {"checks": 3, "passed": 1, "failed": 2}
    assert not outcome.ok
    assert not subject.Outcome().ok, "no check at all proves nothing"


def test_one_cause_is_reported_once():
    outcome = subject.Outcome()
    for name in ("one", "two"):
        outcome.add(name, False, f"e of {name}", "nobody knows", "Ask.")
    outcome.add("three", False, "e", "bad", "Mend it.")
    assert outcome.message() == "one, two: nobody knows. Ask.\nthree: bad; expected: e. Mend it."


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "celery.env"
    path.write_text(f"CELERY_BROKER_URL=redis://celery:{ENCODED}@h:6379/0\n")
    path.chmod(0o600)
    return {
        "app": "payments",
        "python": "/opt/celery/venv/bin/python",
        "user": "celery",
        "environment_file": str(path),
        "environment": {"EXTRA": "1"},
        "config_module": "celeryconfig",
        "python_path": ["/etc/celery"],
        "queues": [],
        "nodes": [],
        "expected": {},
        "broker_facts": None,
        "results_facts": None,
        "letters": None,
        "skip": [],
        "connect_timeout": 5.0,
        "inspect_timeout": 5.0,
        "canary_timeout": 15.0,
        "timeout": 60.0,
    }


pytestmark = pytest.mark.usefixtures("systemd_run")


def test_a_good_host(params):
    hidden: list[str] = []
    asked = {}

    def runner(**arguments):
        asked.update(arguments)
        return answer()

    outcome = subject.verify(params, hide=hidden.extend, runner=runner)
    assert outcome.ok
    assert [check["name"] for check in outcome.checks] == ["environment.file", "environment.python", "a.b"]
    assert outcome.skipped == {"c.d": ""}
    assert asked["environment_file"] == params["environment_file"]
    assert asked["environment"] == {"EXTRA": "1"}
    assert asked["seconds"] == 60.0
    assert "broker_facts" not in asked["request"]
    assert asked["request"]["app"] == "payments"
    assert {PASSWORD, ENCODED} <= set(hidden)


def test_a_failed_check_fails_the_host(params):
    outcome = subject.verify(params, hide=lambda _: None, runner=lambda **_: answer(ok=False, remedy="Do it."))
    assert not outcome.ok
    assert outcome.message() == "a.b: x; expected: e. Do it."


def test_an_environment_file_that_others_can_read_fails_and_the_rest_goes_on(params):
    Path(params["environment_file"]).chmod(0o640)
    outcome = subject.verify(params, hide=lambda _: None, runner=lambda **_: answer())
    assert not outcome.ok
    assert [check["ok"] for check in outcome.checks] == [False, True, True]
    assert "mode 0640" in outcome.checks[0]["actual"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "there is no "),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    ],
)
def test_a_bad_environment_file_is_the_only_check(params, change, message):
    change(Path(params["environment_file"]))
    outcome = subject.verify(params, hide=lambda _: None, runner=lambda **_: pytest.fail("must not be run"))
    assert [check["name"] for check in outcome.checks] == ["environment.file"]
    assert not outcome.ok
    assert message in outcome.checks[0]["actual"]


@pytest.mark.parametrize(("said", "names"), [("", []), (answer().replace(END, ""), ["a.b"])])
def test_a_verifier_that_is_ended_fails_and_what_it_found_is_kept(params, said, names):
    outcome = subject.verify(params, hide=lambda _: None, runner=lambda **_: said)
    assert not outcome.ok
    assert [check["name"] for check in outcome.checks] == ["environment.file", "environment.python", *names]
    assert outcome.checks[1]["actual"] == (
        f"the checks did not end within 60 s and were stopped; the last answered was {names[0] if names else 'none'}"
    )


def test_what_a_verifier_says_is_masked(params):
    def runner(**_):
        raise subject.RunError(f"it said {PASSWORD} and {ENCODED}", "Look.")

    outcome = subject.verify(params, hide=lambda _: None, runner=runner)
    assert outcome.checks[-1]["name"] == "environment.python"
    assert outcome.checks[-1]["actual"] == "it said ******** and ********"
    assert PASSWORD not in outcome.table() + outcome.message()

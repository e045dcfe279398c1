from __future__ import annotations

import getpass
import json
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _verify as subject

PASSWORD = "Pa55:w/ord@2#9"
ENCODED = "Pa55%3Aw%2Ford%402%239"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=b\n", {"A": "b"}),
        ("A=b", {"A": "b"}),
        ("", {}),
        ("# c\n; d\n\n  \nA=b\n", {"A": "b"}),
        ("A=\n", {"A": ""}),
        ("  A = b  \n", {"A": "b"}),
        ("A=b c \n", {"A": "b c"}),
        ("A=b=c\n", {"A": "b=c"}),
        ("A='b c '\n", {"A": "b c "}),
        ('A="b c "\n', {"A": "b c "}),
        ('A="b\\"c\\\\d\\$e\\nf"\n', {"A": 'b"c\\d$e\\nf'}),
        ("A='b\\nc'\n", {"A": "b\\nc"}),
        ("A=b\\ c\n", {"A": "b c"}),
        ("A=b\\\nc\nB=d\n", {"A": "bc", "B": "d"}),
        ('A="b\nc"\nB=d\n', {"A": "b\nc", "B": "d"}),
        ("A='b'\"c\"d\n", {"A": "bcd"}),
        ("A=b\"c'\n", {"A": "b\"c'"}),
        ("A=b#c\n", {"A": "b#c"}),
        ("A=%h$B\n", {"A": "%h$B"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=b\r\nB=c\r\n", {"A": "b", "B": "c"}),
    ],
)
def test_an_environment_file_is_read_as_systemd_does(text, expected):
    assert subject.parse_environment(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=b\nsecret-without-equals\n", "line 2 is not of the form NAME=value"),
        ("A=b\n\n=secret\n", "line 3 does not begin with the name of a variable"),
        ("export A=secret\n", "line 1 does not begin with the name of a variable"),
        ("2A=secret\n", "line 1 does not begin with the name of a variable"),
        ('A="b\nc"\nB="secret\n', "line 3 opens a quote that is never closed"),
        ("A='secret", "line 1 opens a quote that is never closed"),
    ],
)
def test_a_malformed_environment_file_is_refused_without_its_text(text, message):
    with pytest.raises(subject.EnvironmentFileError) as caught:
        subject.parse_environment(text)
    assert str(caught.value) == message


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
    assert not subject.Outcome().ok, "no check at all is no proof"


def test_one_cause_is_reported_once():
    outcome = subject.Outcome()
    for name in ("one", "two"):
        outcome.add(name, False, f"e of {name}", "nobody knows", "Ask.")
    outcome.add("three", False, "e", "bad", "Mend it.")
    assert outcome.message() == "one, two: nobody knows. Ask.\nthree: bad; expected: e. Mend it."


@pytest.fixture
def python(tmp_path):
    """An interpreter that runs a script of the test instead of the verifier."""

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(script))
        path.chmod(0o755)
        return str(path)

    return make


def run(python, **changes):
    arguments = {
        "python": python,
        "user": getpass.getuser(),
        "environment": {"CELERY_BROKER_URL": f"redis://:{PASSWORD}@h/0"},
        "request": {"app": "payments"},
        "seconds": 20,
    }
    return subject.run(**{**arguments, **changes})


def test_the_verifier_gets_its_secrets_by_environment_and_its_request_by_standard_input(python):
    told = json.loads(
        run(
            python(
                """
                import json, os, sys
                print(json.dumps([sys.argv[1:], json.load(sys.stdin), dict(os.environ), os.getcwd()]))
                print('{"end": {}}')
                """
            )
        ).splitlines()[0]
    )
    arguments, request, environment, directory = told
    assert arguments == ["-I", "-m", "celery_hybrid.verify", "--request", "-"]
    assert request == {"app": "payments"}
    assert environment["CELERY_BROKER_URL"] == f"redis://:{PASSWORD}@h/0"
    assert environment["USER"] == getpass.getuser()
    assert "PYTEST_CURRENT_TEST" not in environment
    assert directory == "/"


@pytest.mark.parametrize(
    ("script", "changes", "message", "remedy"),
    [
        ("", {"python": "/nowhere/python"}, "there is no /nowhere/python", "site playbook"),
        ("", {"user": "nobody-of-this-name"}, "there is no user nobody-of-this-name", "worker_user"),
        ("raise SystemExit('no good')", {}, "code 1: no good", "by hand"),
        ("print('{}')", {}, "code 0: without a word", "by hand"),
        ("raise SystemExit(3)", {}, "code 3: without a word", "by hand"),
        ("", {}, "code 0: without a word", "by hand"),
        (
            "raise SystemExit(\"python: Error while finding module specification for 'celery_hybrid.verify' "
            "(ModuleNotFoundError: No module named 'celery_hybrid')\")",
            {},
            "celery-hybrid, or its celery_hybrid.verify, is not installed",
            "worker_hybrid_requirement",
        ),
    ],
)
def test_no_answer_gives_a_reason(python, script, changes, message, remedy):
    with pytest.raises(subject.RunError, match=message) as caught:
        run(**{"python": python(script), **changes})
    assert remedy in caught.value.remedy


def test_children_of_a_verifier_that_hangs_are_ended(python, tmp_path):
    script = f"""
    import subprocess, sys, time
    child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(60)"])
    open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
    print("said before", flush=True)
    time.sleep(60)
    """
    assert run(python(script), seconds=2) == "said before\n"
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child is still alive"
        time.sleep(0.05)


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
    assert asked["environment"] == {"CELERY_BROKER_URL": f"redis://celery:{ENCODED}@h:6379/0", "EXTRA": "1"}
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
        (lambda path: path.write_text("A=b\nPassw0rd-here\n"), "line 2 is not of the form"),
        (lambda path: path.write_bytes(b"A=\xff\xfe"), "is not UTF-8"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_bad_environment_file_is_the_only_check(params, change, message):
    change(Path(params["environment_file"]))
    outcome = subject.verify(params, hide=lambda _: None, runner=lambda **_: pytest.fail("must not be run"))
    assert [check["name"] for check in outcome.checks] == ["environment.file"]
    assert not outcome.ok
    assert message in outcome.checks[0]["actual"]
    assert "Passw0rd" not in outcome.message()


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

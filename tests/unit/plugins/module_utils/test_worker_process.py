from __future__ import annotations

import getpass
import json
import os
import sys
import textwrap

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _worker_process as subject

PASSWORD = "Pa55:w/ord@2#9"


@pytest.fixture
def python(tmp_path):
    """An interpreter that runs a script of the test instead of the verifier."""

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(script))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def environment_file(tmp_path):
    path = tmp_path / "celery.env"
    path.write_text(f"CELERY_BROKER_URL=redis://:{PASSWORD}@h/0\n")
    return path


def run(python, environment_file, **changes):
    arguments = {
        "python": python,
        "user": getpass.getuser(),
        "environment_file": str(environment_file),
        "request": {"app": "payments"},
        "seconds": 20,
        "program": "celery_hybrid.verify",
    }
    return subject.run(**{**arguments, **changes})


def test_the_verifier_gets_its_secrets_by_environment_and_its_request_by_standard_input(
    python, environment_file, systemd_run
):
    told = json.loads(
        run(
            python(
                """
                import json, os, sys
                print(json.dumps([sys.argv[1:], json.load(sys.stdin), dict(os.environ), os.getcwd()]))
                print('{"end": {}}')
                """
            ),
            environment_file,
            environment={"EXTRA": "1"},
        ).splitlines()[0]
    )
    arguments, request, environment, directory = told
    assert arguments == ["-I", "-m", "celery_hybrid.verify", "--request", "-"]
    assert request == {"app": "payments"}
    assert environment["CELERY_BROKER_URL"] == f"redis://:{PASSWORD}@h/0"
    assert environment["EXTRA"] == "1"
    assert "PYTEST_CURRENT_TEST" not in environment
    assert directory == "/"
    options = json.loads(systemd_run.read_text())
    assert {f"--property=User={getpass.getuser()}", "--property=RuntimeMaxSec=20", "--collect"} <= set(options)
    assert PASSWORD not in " ".join(options)


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
def test_no_answer_gives_a_reason(python, environment_file, systemd_run, script, changes, message, remedy):
    with pytest.raises(subject.RunError, match=message) as caught:
        run(**{"python": python(script), "environment_file": environment_file, **changes})
    assert remedy in caught.value.remedy


def test_what_a_program_that_is_ended_has_said_is_kept(python, environment_file, systemd_run):
    script = "import time\nprint('said before', flush=True)\ntime.sleep(60)"
    assert run(python(script), environment_file, seconds=1) == "said before\n"


def test_environment_file_is_read(environment_file, systemd_run):
    assert subject.environment_of(str(environment_file))["CELERY_BROKER_URL"] == f"redis://:{PASSWORD}@h/0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "there is no "),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (lambda path: path.write_text("no assignment\n"), "systemd does not read .*: ValueError"),
    ],
)
def test_environment_file_that_cannot_be_read_is_named(environment_file, systemd_run, change, message):
    change(environment_file)
    with pytest.raises(subject.RunError, match=message):
        subject.environment_of(str(environment_file))


def test_only_root_becomes_another_user(python, environment_file, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(subject.RunError, match="only root") as caught:
        run(python(""), environment_file)
    assert "become: true" in caught.value.remedy


def test_host_without_systemd(python, environment_file, systemd_run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(subject.RunError, match="systemd-run: No such file"):
        run(python(""), environment_file)

"""Passwords of package indexes are neither on a command line nor in the environment of pip."""

from __future__ import annotations

import base64
import json
import netrc
import subprocess
import sys
from pathlib import Path

import pytest

from celery_hybrid.release import installation as subject


def test_users_and_passwords_go_from_the_urls_into_the_netrc_file(tmp_path: Path) -> None:
    clean, text = subject.apart(
        {
            "PIP_INDEX_URL": "https://ci:s%40cret%20%22%5C%23@index.example.org:8443/simple",
            "PIP_EXTRA_INDEX_URL": "https://open.example.org/simple http://token@other.example.org/simple",
            "PIP_FIND_LINKS": "/srv/wheels",
            "PIP_TIMEOUT": "5",
        }
    )
    assert clean == {
        "PIP_INDEX_URL": "https://index.example.org:8443/simple",
        "PIP_EXTRA_INDEX_URL": "https://open.example.org/simple http://other.example.org/simple",
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_TIMEOUT": "5",
    }
    file = tmp_path / "netrc"
    file.write_text(text)
    read = netrc.netrc(file)
    assert read.authenticators("index.example.org") == ("ci", "", 's@cret "\\#')
    assert read.authenticators("other.example.org") == ("token", "", "")
    assert read.authenticators("open.example.org") is None


def test_urls_without_a_password_stay_as_they_are() -> None:
    environment = {"PIP_INDEX_URL": "https://index.example.org/simple", "PIP_NO_INPUT": "1"}
    assert subject.apart(environment) == (environment, "")


SHOW = """
import json, netrc, os, subprocess, sys
child = "import netrc, os; print(netrc.netrc(os.environ['NETRC']).authenticators('index.example.org')[2])"
print(json.dumps({
    "arguments": sys.argv[1:],
    "own": netrc.netrc(os.environ["NETRC"]).authenticators("index.example.org"),
    "home": netrc.netrc(os.environ["NETRC"]).authenticators("git.example.org"),
    "child": subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip(),
    "environment": dict(os.environ),
    "command": open("/proc/self/cmdline").read(),
    "stdin": sys.stdin.read(),
}))
"""


@pytest.mark.parametrize("given", ["https://ci:topsecret@index.example.org/simple", ""])
def test_program_becomes_pip_which_can_read_the_password_as_can_its_children(given: str, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine git.example.org login deploy password other\n")
    show = tmp_path / "show.py"
    show.write_text(SHOW if given else "import os; print(os.environ.get('NETRC'))")
    request = {
        "command": [sys.executable, "-I", str(show), "install"],
        "environment": {"PIP_INDEX_URL": given} if given else {},
    }
    encoded = base64.b64encode(json.dumps(request).encode()).decode()
    program = f"{Path(subject.__file__).read_text()}\nmain('{encoded}')\n"
    done = subprocess.run(
        [sys.executable, "-I", "-"],
        input=program,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    if not given:
        assert done.stdout == "None\n"
        return
    shown = json.loads(done.stdout)
    assert shown["arguments"] == ["install"]
    assert shown["own"] == ["ci", "", "topsecret"]
    assert shown["home"] == ["deploy", "", "other"]
    assert shown["child"] == "topsecret"
    assert shown["stdin"] == ""
    assert "topsecret" not in shown["command"] + str(shown["environment"])

"""What the rounds share: the hosts, the playbooks as ops run them, and a stream of tasks that must not lose one."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from stack import INVENTORY, ROOT, STATE

Run = Callable[..., subprocess.CompletedProcess[str]]

# What the rows may use: 'api' for the management API of RabbitMQ, 'r' for redis-cli, 'edit' for sed.
PROLOGUE = r"""
set -eu
umask 077
read -r redis_admin; read -r rabbitmq_admin
export redis_admin rabbitmq_admin
edit() { before=$(cat "$2"); sed -i "$1" "$2"; test "$before" != "$(cat "$2")"; }
r() { REDISCLI_AUTH=$redis_admin redis-cli --user admin --no-auth-warning "$@" | grep -q OK; }
api() { python3 - "$@" <<'END'
import base64, os, sys, urllib.request
method, path = sys.argv[1:3]
login = base64.b64encode(("admin:" + os.environ["rabbitmq_admin"]).encode()).decode()
request = urllib.request.Request(
    "http://127.0.0.1:15672/api/" + path,
    data=sys.argv[3].encode() if len(sys.argv) > 3 else None,
    method=method,
    headers={"Authorization": "Basic " + login, "Content-Type": "application/json"},
)
urllib.request.urlopen(request, timeout=20)
END
}
"""


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Every secret of the deployment, by name."""
    return {path.name: path.read_text().strip() for path in (STATE / "secrets").iterdir()}


@pytest.fixture(scope="session")
def hosts() -> dict[str, tuple[str, str]]:
    """Name and address of the first host of each group."""
    groups = yaml.safe_load(INVENTORY.read_text())["all"]["children"]
    first = {name: next(iter(group["hosts"].items())) for name, group in groups.items()}
    return {group: (name, host["ansible_host"]) for group, (name, host) in first.items()}


@pytest.fixture(scope="session")
def root_shell(hosts: dict[str, tuple[str, str]]) -> Run:
    """Run a shell script as root on the first host of a group, with a text on its standard input."""

    def run(group: str, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        quoted = "'" + script.replace("'", "'\\''") + "'"
        command = ["ssh", "-F", str(STATE / "ssh_config"), hosts[group][1], f"sudo sh -c {quoted}"]
        return subprocess.run(command, input=stdin, text=True, capture_output=True, check=False, timeout=180)

    return run


@pytest.fixture(scope="session")
def break_by_hand(root_shell: Run, secrets: dict[str, str]) -> Callable[[str, list[str]], None]:
    """Run what the rows of a group do to its host, in one shell."""

    def run(group: str, scripts: list[str]) -> None:
        stdin = f"{secrets['redis_admin']}\n{secrets['rabbitmq_admin']}\n"
        done = root_shell(group, PROLOGUE + "set -x\n" + "\n".join(scripts), stdin)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def environment() -> dict[str, str]:
    """Return what a person on call has set."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACKS_ENABLED": "celeryops.hybrid.drift",
        "ANSIBLE_SSH_COMMON_ARGS": f"-F {STATE / 'ssh_config'}",
        "ANSIBLE_NOCOLOR": "1",
    }


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a playbook of the collection against this scenario's hosts."""

    def run(name: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["ansible-playbook", "-i", str(INVENTORY), f"celeryops.hybrid.{name}", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return run


@pytest.fixture(scope="session")
def playbook(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str]]:
    """Run a playbook; return its exit code and what it said."""

    def run(name: str, *arguments: str) -> tuple[int, str]:
        process = start(name, *arguments)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    return run


@pytest.fixture(scope="session")
def look(playbook: Callable[..., tuple[int, str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Look for drift; return the exit code, what was said, and the report as JSON."""
    folder = tmp_path_factory.mktemp("reports")

    def run(*arguments: str) -> tuple[int, str, dict[str, Any]]:
        report = folder / "drift.json"
        report.unlink(missing_ok=True)
        metrics = folder / "drift.prom"
        code, output = playbook(
            "drift", "-e", f"drift_report_json={report}", "-e", f"drift_report_metrics={metrics}", *arguments
        )
        assert report.exists(), output[-3000:]
        assert f"celeryops_drift_exit_code {code}" in metrics.read_text()
        return code, output, json.loads(report.read_text())

    return run


# Runs on the worker host because Celery is there, with the rights of an application. Sends until its input ends.
SENDER = r"""
import json, os, select, sys, time
os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"] = sys.stdin.readline().split()
os.environ["CELERY_CONFIG_MODULE"] = "celeryconfig"
sys.path.insert(0, os.environ["CONFIGURATION"])
from celery.result import AsyncResult
from payments import app
sent = []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.25)[0]:
    try:
        sent.append(app.send_task("payments.add", (len(sent), 1), queue=("celery", "slow")[len(sent) % 2]).id)
    except Exception as exc:
        # The broker restarts; what was not taken was not sent.
        print("not sent:", exc, file=sys.stderr)
        time.sleep(0.5)
deadline, missing = time.monotonic() + 150, dict(enumerate(sent))
while missing and time.monotonic() < deadline:
    for number, task in list(missing.items()):
        try:
            if AsyncResult(task, app=app).get(timeout=5) == number + 1:
                del missing[number]
        except Exception as exc:
            print(number, repr(exc), file=sys.stderr)
            time.sleep(1)
            break
print(json.dumps({"sent": len(sent), "missing": list(missing.values())}))
"""


class Stream:
    """Tasks that flow until they are counted."""

    def __init__(self, address: str, broker: str, results: str) -> None:
        # A copy of the settings: those of the worker are about to be broken.
        script = (
            "set -e; export CONFIGURATION=$(mktemp -d); cp /etc/celery/celeryconfig.py $CONFIGURATION; "
            "exec $(readlink -f /opt/celery/venv)/bin/python -c "
            "'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
        )
        quoted = "'" + script.replace("'", "'\\''") + "'"
        command = ["ssh", "-F", str(STATE / "ssh_config"), address, f"sudo sh -c {quoted}"]
        self._errors: list[str] = []
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        threading.Thread(target=self._errors.extend, args=(self._process.stderr,), daemon=True).start()
        self._process.stdin.write(f"{len(SENDER)}\n{SENDER}{broker} {results}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n", self._errors

    def count(self) -> tuple[dict[str, Any], str]:
        """End the stream; return how many were sent and which have no result, and what was complained about."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        answer = self._process.stdout.read()
        self._process.wait(timeout=60)
        complaints = "".join(self._errors[-10:])
        assert answer, complaints
        return json.loads(answer), complaints

    def stop(self) -> None:
        """End it without counting."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def stream(hosts: dict[str, tuple[str, str]], secrets: dict[str, str]) -> Iterator[Stream]:
    """Tasks flow as long as the test runs."""
    flowing = Stream(
        hosts["worker"][1],
        f"redis://celery:{quote(secrets['redis'], safe='')}@{hosts['redis'][1]}:6379/0",
        f"amqp://client:{quote(secrets['rabbitmq_client'], safe='')}@{hosts['rabbitmq'][1]}:5672/celery",
    )
    yield flowing
    flowing.stop()

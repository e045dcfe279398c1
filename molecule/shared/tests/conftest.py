"""What the tests of a deployed stack share. They run from the control node, by SSH, as ops would look."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from stack import INVENTORY, ROOT, STATE

# Runs on the worker host because Celery is there; it uses the client's own user, not the worker's.
PROLOGUE = """
import json, os, sys
os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"] = sys.stdin.readline().split()
os.environ["CELERY_CONFIG_MODULE"] = "celeryconfig"
sys.path.insert(0, "/etc/celery")
from payments import app
from celery.result import AsyncResult
"""


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Every secret of the deployment, by name."""
    return {path.name: path.read_text().strip() for path in (STATE / "secrets").iterdir()}


@pytest.fixture(scope="session")
def root_shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a shell script as root on a host, with a text on its standard input: never in argv."""

    def run(address: str, script: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        quoted = "'" + script.replace("'", "'\\''") + "'"
        command = ["ssh", "-F", str(STATE / "ssh_config"), address, f"sudo sh -c {quoted}"]
        return subprocess.run(command, input=stdin, text=True, capture_output=True, check=False, timeout=timeout)

    return run


@pytest.fixture
def address(host: Any) -> str:
    """The address of the host under test."""
    name = host.backend.get_pytest_id().rpartition("://")[2]
    groups = yaml.safe_load(INVENTORY.read_text())["all"]["children"].values()
    return str(next(group["hosts"][name]["ansible_host"] for group in groups if name in group["hosts"]))


@pytest.fixture(scope="session")
def addresses() -> dict[str, str]:
    """The address of the first host of each group."""
    groups = yaml.safe_load(INVENTORY.read_text())["all"]["children"]
    return {name: next(iter(group["hosts"].values()))["ansible_host"] for name, group in groups.items()}


@pytest.fixture(scope="session")
def urls(secrets: dict[str, str], addresses: dict[str, str]) -> dict[str, str]:
    """The URLs that an application outside the worker hosts would use."""
    return {
        "broker": f"rediss://celery:{quote(secrets['redis'], safe='')}@{addresses['redis']}:6380/0"
        "?ssl_cert_reqs=required&ssl_check_hostname=true&ssl_ca_certs=/etc/celery/tls/redis-ca.pem",
        "results": f"amqps://client:{quote(secrets['rabbitmq_client'], safe='')}@{addresses['rabbitmq']}:5671/celery"
        "?ca_certs=/etc/celery/tls/rabbitmq-ca.pem",
    }


@pytest.fixture
def client(address: str, root_shell: Callable[..., Any], urls: dict[str, str]) -> Callable[[str], Any]:
    """Run a program in a fresh process of an application; return what it prints as JSON."""

    def run(program: str) -> Any:
        # The program comes on the same input as the URLs, so nothing secret is in a command line.
        script = (
            "exec /opt/celery/venv/bin/python -c 'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
        )
        source = PROLOGUE + program
        done = root_shell(address, script, f"{len(source)}\n{source}{urls['broker']} {urls['results']}\n")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def ansible_playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook of the collection against this scenario's hosts, as ops do."""

    def run(
        name: str, *arguments: str, inventory: Path = INVENTORY, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        settings = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {STATE / 'ssh_config'}",
            "ANSIBLE_NOCOLOR": "1",
            **(environment or {}),
        }
        command = ["ansible-playbook", "-i", str(inventory), f"celeryops.hybrid.{name}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=settings, text=True, capture_output=True, check=False, timeout=600)

    return run

"""How these tests reach the hosts: from the control node, by SSH and with the collection's playbooks, as ops would."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
STATE = ROOT / ".cache" / "hosts"
INVENTORY = ROOT / "molecule" / "inventory" / "diagnose.yml"
ADDRESSES = {"servers": "10.213.47.11", "worker": "10.213.47.12"}
# What the scripts of the tests may use; the first line of their standard input is the password of Redis' administrator.
PRELUDE = """
read -r REDISCLI_AUTH; export REDISCLI_AUTH
admin() { redis-cli --tls --cacert /etc/redis/tls/ca.pem -p 6380 --user admin --no-auth-warning "$@"; }
service() {
  systemd-run --quiet --uid=celery --property=EnvironmentFile=/etc/celery/celery.env \
    --setenv=CELERY_CONFIG_MODULE=${CONFIG:-celeryconfig} --setenv=PYTHONPATH=/tmp/odd:/etc/celery "$@"
}
python() { service --pipe --wait --collect /opt/celery/venv/bin/python -c "import os; from troubles import app; $1"; }
control() { service --pipe --wait --collect /opt/celery/venv/bin/celery -A troubles control --timeout 3 "$@"; }
"""


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Every secret of the deployment, by name."""
    return {path.name: path.read_text().strip() for path in (STATE / "secrets").iterdir()}


@pytest.fixture(scope="session")
def shell(secrets: dict[str, str]) -> Callable[[str, str], str]:
    """Run a script as root on a host; it must succeed."""

    def run(host: str, script: str) -> str:
        remote = "sudo bash -euc " + shlex.quote(PRELUDE + script)
        done = subprocess.run(
            ["ssh", "-F", str(STATE / "ssh_config"), ADDRESSES[host], remote],
            input=secrets["redis_admin"] + "\n",
            text=True,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook of the collection, as ops do."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {STATE / 'ssh_config'}",
            "ANSIBLE_TIMEOUT": "5",
            "ANSIBLE_NOCOLOR": "1",
        }
        command = ["ansible-playbook", "-i", str(INVENTORY), *arguments, f"celeryops.hybrid.{name}"]
        return subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=300
        )

    return run


@pytest.fixture
def diagnose(playbook: Any, secrets: dict[str, str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the diagnosis; return its bundle, with what was printed as ``printed``."""

    def run(*arguments: str) -> dict[str, Any]:
        began = time.monotonic()
        done = playbook("diagnose", "-e", f"diagnose_directory={tmp_path}", *arguments)
        took = time.monotonic() - began
        assert done.returncode == 0, done.stdout + done.stderr
        assert "changed=0" in done.stdout
        (path,) = tmp_path.glob("diagnose-*.json")
        text = path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        for name, secret in secrets.items():
            assert secret not in text + done.stdout, f"the password {name} is told"
        bundle = json.loads(text)
        for each in tmp_path.iterdir():
            each.unlink()
        return {**bundle, "printed": done.stdout, "took": took}

    return run

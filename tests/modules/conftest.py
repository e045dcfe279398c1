"""Servers for the tests of the modules, and a way to run a module's ``main()`` against them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".cache" / "hosts"
HOSTS = yaml.safe_load(Path(os.environ["MODULES_INVENTORY"]).read_text())["all"]["children"]["redis"]["hosts"]


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine with a Redis and a RabbitMQ.

    Attributes:
        name: ``debian12`` (Redis 7.0, RabbitMQ 3.10) or ``debian13`` (Redis 8.0, RabbitMQ 4.0).
        address: where Redis and AMQP listen.
    """

    name: str
    address: str

    def shell(self, script: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script as root."""
        command = ["ssh", "-F", str(STATE / "ssh_config"), self.address, f"sudo sh -c {shlex.quote(script)}"]
        return subprocess.run(command, input=stdin, text=True, capture_output=True, check=check, timeout=120)

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """Make a port of the host's loopback one of ours, as the README tells administrators."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ours = probe.getsockname()[1]
        command = ["ssh", "-F", str(STATE / "ssh_config"), "-S", "none", "-o", "ExitOnForwardFailure=yes"]
        with subprocess.Popen([*command, "-NL", f"127.0.0.1:{ours}:127.0.0.1:{port}", self.address]) as ssh:
            try:
                deadline = time.monotonic() + 30
                while socket.socket().connect_ex(("127.0.0.1", ours)) and time.monotonic() < deadline:
                    time.sleep(0.05)
                yield ours
            finally:
                ssh.terminate()


@pytest.fixture(scope="session")
def all_hosts() -> dict[str, Host]:
    """The hosts by name."""
    return {name: Host(name, variables["ansible_host"]) for name, variables in HOSTS.items()}


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest, all_hosts: dict[str, Host]) -> Host:
    """Each host in turn."""
    return all_hosts[request.param]


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Every secret of the hosts, by name."""
    return {path.name: path.read_text().strip() for path in (STATE / "secrets").iterdir()}


def run_module(module: Any, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run a module's ``main()`` here, and return what Ansible would get, with ``exception`` never among it."""
    out = io.StringIO()
    given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
    with patch_module_args(given), redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit) as left:
        module.main()
    text = out.getvalue()
    # Neither may a secret leave a module, nor a traceback.
    for key in ("password", "login_password"):
        assert not arguments.get(key) or arguments[key] not in text
    result = json.loads(re.findall(r"^\{.*\}$", text, re.MULTILINE)[-1])
    assert bool(result.get("failed")) == bool(left.value.code), text
    result.pop("invocation", None)
    return result


@pytest.fixture(scope="session")
def module() -> Any:
    """``module(name_of_imported_module, check=False, **arguments)``."""
    return run_module

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

from redis_servers import OWN_PORT, SHARED_PORT, VERSIONS, Server

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


@pytest.fixture(scope="module", params=VERSIONS, ids="-".join)
def machine(request: pytest.FixtureRequest, all_hosts: dict[str, Any]) -> tuple[Any, str]:
    """A host that has the program; the package of Valkey would start a service on the broker's port."""
    name, program = request.param
    host = all_hosts[name]
    if program == "valkey":
        host.shell(
            "test -e /usr/bin/valkey-server || { systemctl mask --quiet valkey-server;"
            " DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends valkey-server; }"
        )
    return host, program


@pytest.fixture(scope="module")
def shared(machine: tuple[Any, str], module: Any) -> Iterator[Server]:
    server = Server(*machine, module, SHARED_PORT)
    server.start()
    with server.host.tunnel(SHARED_PORT) as server.port:
        yield server
    server.remove()


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """A server as it was made, for all that can be undone live."""
    words = shared.call("CONFIG", "GET", "*")
    yield shared
    shared.restore(dict(zip(words[0::2], words[1::2], strict=True)))


@pytest.fixture(scope="module")
def own_port(machine: tuple[Any, str]) -> Iterator[int]:
    with machine[0].tunnel(OWN_PORT) as port:
        yield port


@pytest.fixture
def own(machine: tuple[Any, str], module: Any, own_port: int) -> Iterator[Server]:
    """A server of one test, not yet started."""
    server = Server(*machine, module, OWN_PORT)
    server.port = own_port
    yield server
    server.remove()

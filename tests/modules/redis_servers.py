"""Servers of Redis and Valkey for the tests of the modules, which a test may break and restart.

Each runs beside the broker of its host, on a port of its own.
"""

from __future__ import annotations

import shlex
import uuid
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import render_acl
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisClient
from ansible_collections.celeryops.hybrid.plugins.modules import redis_runtime, redis_runtime_info

PASSWORD = "a password of the tests"
ADMIN = {"name": "admin", "password": PASSWORD, "rules": ["~*", "&*", "+@all"]}
OFF = {"name": "default", "enabled": False, "rules": ["resetkeys", "resetchannels", "-@all"]}
VERSIONS = {("debian12", "redis"): "7.0", ("debian13", "redis"): "8.0", ("debian13", "valkey"): "8.1"}
SHARED_PORT, OWN_PORT = 7379, 7380


class Server:
    """A server of the tests, as a transient unit with files of its own."""

    def __init__(self, host: Any, program: str, module: Any, port: int) -> None:
        self.host = host
        self.program = program
        self.version = VERSIONS[host.name, program]
        self.port = 0
        self._module = module
        self._unit = f"celeryops-test-{uuid.uuid4().hex[:8]}"
        self.folder = f"/var/tmp/{self._unit}"
        self._lines = [f"port {port}", "bind 127.0.0.1", f"dir {self.folder}/data", 'save ""']
        self._lines.append(f"aclfile {self.folder}/etc/users.acl")
        self._files = {"users.acl": render_acl([OFF, ADMIN])}

    def write(self, name: str, text: str) -> str:
        """Have a file ready for the start; return its path there."""
        self._files[name] = text
        return f"{self.folder}/etc/{name}"

    def start(self, *lines: str, properties: str = "", file: bool = True) -> None:
        """Start it with a file, or with the same lines as arguments; it is ready when this returns."""
        lines = (*self._lines, *lines)
        arguments = self.write("server.conf", "\n".join([*lines, ""])) if file else " ".join(f"--{x}" for x in lines)
        self._command = (
            f"systemd-run --quiet --collect --unit={self._unit} -p Type=notify {properties}"
            f" /usr/bin/{self.program}-server {arguments} --supervised systemd"
        )
        files = (f"printf %s {shlex.quote(text)} > {self.folder}/etc/{name}" for name, text in self._files.items())
        make = f"mkdir -p {self.folder}/etc {self.folder}/data"
        self.host.shell("\n".join(["set -e", make, *files, self._command]))

    def restart(self) -> None:
        self.host.shell(f"systemctl stop {self._unit}; {self._command}")

    def stop(self) -> None:
        self.host.shell(f"systemctl stop {self._unit}", check=False)

    def remove(self) -> None:
        self.host.shell(f"systemctl stop {self._unit}; rm -rf {self.folder}", check=False)

    def restore(self, config: dict[str, str]) -> None:
        """Bring it back to a configuration, to the users of its file, and to no data."""
        with self.client() as client:
            now = client.call("CONFIG", "GET", "*")
            pairs = zip(now[0::2], now[1::2], strict=True)
            changed = [(name, config[name]) for name, value in pairs if config[name] != value]
            if changed:
                client.call("CONFIG", "SET", *(word for pair in changed for word in pair))
            client.call("FLUSHALL")
            client.call("ACL", "LOAD")

    def client(self, username: str = "admin", password: str = PASSWORD) -> RedisClient:
        return RedisClient("127.0.0.1", self.port, username, password)

    def call(self, *words: str) -> Any:
        with self.client() as client:
            return client.call(*words)

    def config(self, name: str) -> str:
        return self.call("CONFIG", "GET", name)[1]

    def run(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run redis_runtime."""
        return self._module(redis_runtime, check=check, **self._login(), **arguments)

    def info(self, **login: Any) -> dict[str, Any]:
        return self._module(redis_runtime_info, **self._login() | login)

    def _login(self) -> dict[str, Any]:
        return {"username": "admin", "password": PASSWORD, "port": self.port}

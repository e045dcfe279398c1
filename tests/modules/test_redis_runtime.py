"""redis_runtime and redis_runtime_info against Redis 7.0 and 8.0 and Valkey 8.1.

Each runs beside the broker of its host, on a port of its own, so that a test may break and restart it.
"""

from __future__ import annotations

import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import render_acl
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisClient, RedisError
from ansible_collections.celeryops.hybrid.plugins.modules import redis_runtime, redis_runtime_info

PASSWORD = "a password of the tests"
ADMIN = {"name": "admin", "password": PASSWORD, "rules": ["~*", "&*", "+@all"]}
OFF = {"name": "default", "enabled": False, "rules": ["resetkeys", "resetchannels", "-@all"]}
DASHBOARD = {
    "name": "dashboard",
    "password": "of the dashboard",
    "rules": ["~celery*", "-@all", "+@read", "-@dangerous"],
}
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


def setting(name: str, value: Any) -> list[dict[str, Any]]:
    return [{"name": name, "value": value}]


def actions(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(item["kind"], item["name"], item["action"]) for item in result["differences"]]


def sentences(result: dict[str, Any]) -> list[str]:
    return [item["sentence"] for item in result["differences"]]


class TestSettings:
    """Compared as the server shows them, changed live."""

    DECLARED = (
        ("maxmemory", "64mb", "67108864"),
        ("appendfsync", "always", "always"),
        ("save", "3600 1 300 100", "3600 1 300 100"),
        ("save", ["3600 1", "60 7"], "3600 1 60 7"),
        ("notify-keyspace-events", "Kl", "lK"),
        ("slowlog-log-slower-than", 20000, "20000"),
        ("activerehashing", False, "no"),
    )

    @pytest.mark.parametrize(("name", "value", "shown"), DECLARED)
    def test_changes_live_and_once(self, server: Server, name: str, value: Any, shown: str) -> None:
        declared = setting(name, value)
        before = server.config(name)
        looked = server.run(check=True, settings=declared)
        assert server.config(name) == before
        done = server.run(settings=declared)
        assert server.config(name) == shown
        for result in (looked, done):
            assert (result["changed"], result["restart_required"], result["unseen"]) == (True, False, [])
            assert actions(result) == [("setting", name, "update")]
            assert result["diff"]["before"] == {f"setting {name}": before}
            assert list(result["diff"]["after"]) == [f"setting {name}"]
        again = server.run(settings=declared)
        assert (again["changed"], again["differences"]) == (False, [])

    def test_limits_of_one_class_of_clients(self, server: Server) -> None:
        declared = setting("client-output-buffer-limit", "pubsub 48mb 16mb 60")
        assert server.run(settings=declared)["changed"]
        assert not server.run(settings=declared)["changed"]
        assert "pubsub 50331648 16777216 60" in server.config("client-output-buffer-limit")
        assert "slave 268435456" in server.config("client-output-buffer-limit")

    @pytest.mark.parametrize(("name", "value"), [("tcp-backlog", 77), ("databases", 3), ("dbfilename", "x.rdb")])
    def test_says_what_needs_a_restart_and_leaves_it(self, server: Server, name: str, value: Any) -> None:
        before = server.config(name)
        result = server.run(settings=setting(name, value))
        assert (result["changed"], result["restart_required"]) == (False, True)
        assert actions(result) == [("setting", name, "restart")]
        assert "needs a restart" in sentences(result)[0]
        assert server.config(name) == before

    def test_the_append_only_file_holds_everything_when_it_returns(self, server: Server) -> None:
        server.call("SET", "kept", "1")
        server.run(settings=setting("appendonly", True))
        server.host.shell(f"ls {server.folder}/data/appendonlydir/*.base.rdb")

    WRONG = (
        ("maxmemory-polcy", "noeviction", "Did you mean 'maxmemory-policy'"),
        ("maxmem*", "1gb", "no setting 'maxmem*'"),
        ("appendfsync", "sometimes", "appendfsync"),
        ("maxmemory", "1kb", "are in use"),
        ("port", "6379\nuser default on nopass", "line break"),
    )

    @pytest.mark.parametrize(("name", "value", "words"), WRONG)
    def test_what_is_wrong_gets_a_sentence_and_changes_nothing(
        self, server: Server, name: str, value: Any, words: str
    ) -> None:
        result = server.run(settings=setting("hz", 20) + setting(name, value))
        assert result["failed"]
        assert words in result["msg"]
        assert server.config("hz") == "10"


class TestEviction:
    """A broker that may delete queued tasks is refused."""

    def test_declared(self, server: Server) -> None:
        declared = setting("maxmemory-policy", "allkeys-lru")
        result = server.run(settings=declared)
        assert result["failed"]
        assert "deletes queued tasks" in result["msg"]
        assert server.config("maxmemory-policy") == "noeviction"
        assert server.run(settings=declared, allow_eviction=True)["changed"]
        assert server.config("maxmemory-policy") == "allkeys-lru"

    def test_running(self, server: Server) -> None:
        server.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
        assert "runs with maxmemory-policy 'volatile-ttl'" in server.run()["msg"]
        assert not server.run(allow_eviction=True)["changed"]
        assert server.run(settings=setting("maxmemory-policy", "noeviction"))["changed"]
        assert not server.info()["memory"]["may_evict"]


class TestUsers:
    """Compared word by word, changed without closing a connection."""

    ALL = (OFF, ADMIN, DASHBOARD)

    def test_made_once(self, server: Server) -> None:
        looked = server.run(check=True, users=self.ALL)
        done = server.run(users=self.ALL)
        for result in (looked, done):
            assert actions(result) == [("user", "dashboard", "create")]
            assert result["changed"]
        assert server.run(users=self.ALL)["differences"] == []
        with server.client("dashboard", "of the dashboard") as client:
            assert client.call("LRANGE", "celery", "0", "-1") == []
            with pytest.raises(RedisError, match="NOPERM"):
                client.call("GET", "other")

    CHANGES = (
        (["+flushall"], "has +flushall"),
        (["-get"], "has -get"),
        (["~other*"], "has ~other*"),
        (["&other*"], "has &other*"),
        (["(~x +set)"], "has (~x resetchannels -@all +set)"),
        (["nopass"], "asks for no password"),
        ([">more"], "has another password"),
        (["resetpass"], "has no password"),
        (["off"], "is off, declared on"),
        (["skip-sanitize-payload"], "has skip-sanitize-payload"),
        (["resetkeys"], "lacks ~celery*"),
    )

    @pytest.mark.parametrize(("words", "sentence"), CHANGES, ids=[sentence for _, sentence in CHANGES])
    def test_every_change_is_found_and_undone(self, server: Server, words: list[str], sentence: str) -> None:
        server.run(users=self.ALL)
        server.call("ACL", "SETUSER", "dashboard", *words)
        listed = server.call("ACL", "LIST")
        looked = server.run(check=True, users=self.ALL)
        assert server.call("ACL", "LIST") == listed
        done = server.run(users=self.ALL)
        for result in (looked, done):
            assert actions(result) == [("user", "dashboard", "update")]
            assert sentence in sentences(result)[0]
            assert result["diff"]["before"] != result["diff"]["after"]
            assert "#" not in str(result)
        assert server.run(users=self.ALL)["differences"] == []

    def test_another_password_leaves_connections_open(self, server: Server) -> None:
        server.run(users=self.ALL)
        with server.client("dashboard", "of the dashboard") as client:
            server.run(users=[OFF, ADMIN, DASHBOARD | {"password": "new"}])
            assert client.call("EXISTS", "celery") == 0
        server.client("dashboard", "new").close()
        with pytest.raises(RedisError, match="WRONGPASS"):
            server.client("dashboard", "of the dashboard")

    def test_what_is_not_declared_is_deleted_once(self, server: Server) -> None:
        server.call("ACL", "SETUSER", "stray", "on", "nopass", "+@all", "~*")
        assert actions(server.run(check=True, users=[OFF, ADMIN])) == [("user", "stray", "delete")]
        assert server.run(users=[OFF, ADMIN])["diff"]["after"] == {}
        assert not server.run(users=[OFF, ADMIN])["changed"]
        assert server.call("ACL", "USERS") == ["admin", "default"]

    def test_they_are_left_alone_unless_declared(self, server: Server) -> None:
        server.call("ACL", "SETUSER", "stray", "on", "nopass")
        assert not server.run(settings=setting("hz", 10))["changed"]

    @pytest.mark.parametrize(
        ("users", "words"),
        [
            ([OFF], "'users' does not name 'admin'"),
            ([OFF, ADMIN, {"name": "x", "rules": ["+nosuchcommand"]}], "user 'x' are refused"),
            ([OFF, ADMIN, {"name": "x", "rules": [">clear"]}], "'>clear' is no rule"),
        ],
    )
    def test_what_is_wrong_gets_a_sentence_and_changes_nothing(
        self, server: Server, users: list[dict[str, Any]], words: str
    ) -> None:
        listed = server.call("ACL", "LIST")
        result = server.run(users=users)
        assert result["failed"]
        assert words in result["msg"]
        assert server.call("ACL", "LIST") == listed


class TestRewrite:
    """A live change survives a restart, or it is said why it does not."""

    def test_with_it_a_change_survives(self, own: Server) -> None:
        own.start()
        users = [OFF, ADMIN, DASHBOARD]
        assert own.run(settings=setting("hz", 20), users=users, rewrite=True)["rewritten"]
        own.restart()
        again = own.run(settings=setting("hz", 20), users=users, rewrite=True)
        assert (again["differences"], again["rewritten"]) == ([], False)

    def test_without_it_only_the_file_counts(self, own: Server) -> None:
        own.start()
        own.run(settings=setting("hz", 20))
        own.restart()
        assert own.config("hz") == "10"

    def test_check_mode_writes_nothing(self, own: Server) -> None:
        own.start()
        assert not own.run(check=True, settings=setting("hz", 20), rewrite=True)["rewritten"]
        own.restart()
        assert own.config("hz") == "10"

    def test_a_server_without_a_file_is_refused_before_a_change(self, own: Server) -> None:
        own.start(file=False)
        result = own.run(settings=setting("hz", 20), rewrite=True)
        assert "without a configuration file" in result["msg"]
        assert own.config("hz") == "10"

    def test_a_file_that_cannot_be_written_is_named(self, own: Server) -> None:
        own.start(properties="-p User=nobody")
        result = own.run(settings=setting("hz", 20), rewrite=True)
        assert (result["failed"], result["changed"], result["rewritten"]) == (True, True, False)
        assert "cannot write the configuration file" in result["msg"]
        assert own.config("hz") == "20"


class TestLogin:
    """Who is not let in is told apart from who is not there."""

    def test_wrong_password(self, server: Server, module: Any) -> None:
        login = {"username": "admin", "password": "wrong one", "port": server.port}
        result = module(redis_runtime, **login)
        assert (result["status"], result["restart_required"], result["changed"]) == ("refused", True, False)
        assert "does not serve its administrator 'admin'" in module(redis_runtime, **login, wait=1)["msg"]
        assert "WRONGPASS" in module(redis_runtime_info, **login)["msg"]

    def test_stopped(self, own: Server) -> None:
        own.start()
        own.stop()
        result = own.run()
        assert (result["status"], result["changed"]) == ("unreachable", False)
        assert own.run(wait=0.5)["failed"]
        assert own.info()["failed"]

    def test_tls(self, own: Server, tmp_path: Path) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        subprocess.run(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=broker1"
            f" -addext subjectAltName=DNS:broker1 -keyout {key} -out {certificate}".split(),
            check=True,
            capture_output=True,
        )
        files = [own.write(path.name, path.read_text()) for path in (key, certificate)]
        own.start(
            "port 0",
            f"tls-port {OWN_PORT}",
            "tls-auth-clients yes",
            f"tls-ca-cert-file {files[1]}",
            f"tls-key-file {files[0]}",
            f"tls-cert-file {files[1]}",
        )
        clear = own.run()
        assert (clear["status"], "'tls'" in clear["message"]) == ("unreachable", True)
        trusted: dict[str, Any] = {"tls": True, "ca_path": str(certificate)}
        unnamed = own.run(**trusted)
        assert "certificate is for '127.0.0.1'" in unnamed["message"]
        trusted["server_hostname"] = "broker1"
        assert "certificate required" in own.run(**trusted)["message"]
        trusted |= {"client_cert": str(certificate), "client_key": str(key)}
        assert own.run(settings=setting("hz", 20), **trusted)["changed"]
        assert own.info(**trusted)["config"]["hz"] == "20"


def test_info_says_who_answers_and_keeps_secrets(server: Server) -> None:
    server.call("CONFIG", "SET", "masterauth", "of-the-master")
    server.call("RPUSH", "celery", "1")
    found = server.info()
    assert found["server"]["name"] == server.program
    assert found["server"]["version"].startswith(server.version)
    assert found["server"]["config_file"] == f"{server.folder}/etc/server.conf"
    assert [(user["name"], user["enabled"], user["password"]) for user in found["users"]] == [
        ("admin", True, "set"),
        ("default", False, "none"),
    ]
    assert found["config"]["masterauth"] == "set"
    assert found["config"]["maxmemory-policy"] == found["memory"]["policy"] == "noeviction"
    assert found["databases"] == {"0": 1}
    assert found["clients"]["connected"] > 0
    assert not found["persistence"]["append_only_file"]
    assert "of-the-master" not in str(found)
    assert "#" not in str(found["users"])

"""redis_runtime and redis_runtime_info against Redis 7.0 and 8.0 and Valkey 8.1."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisError
from ansible_collections.celeryops.hybrid.plugins.modules import redis_runtime, redis_runtime_info

from redis_servers import ADMIN, OFF, OWN_PORT, Server

DASHBOARD = {
    "name": "dashboard",
    "password": "of the dashboard",
    "rules": ["~celery*", "-@all", "+@read", "-@dangerous"],
}


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
    def test_wrong_input_gives_a_reason_and_changes_nothing(
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

    def test_what_is_not_declared_is_deleted_once_if_asked_for(self, server: Server) -> None:
        server.call("ACL", "SETUSER", "stray", "on", "nopass", "+@all", "~*")
        assert not server.run(users=[OFF, ADMIN])["changed"]
        pruned = {"users": [OFF, ADMIN], "prune_users": True}
        assert actions(server.run(check=True, **pruned)) == [("user", "stray", "delete")]
        assert server.run(**pruned)["diff"]["after"] == {}
        assert not server.run(**pruned)["changed"]
        assert server.call("ACL", "USERS") == ["admin", "default"]

    def test_they_are_left_alone_unless_declared(self, server: Server) -> None:
        server.call("ACL", "SETUSER", "stray", "on", "nopass")
        assert not server.run(settings=setting("hz", 10))["changed"]

    @pytest.mark.parametrize(
        ("users", "words"),
        [
            ([OFF], "'users' does not name 'admin'"),
            ([OFF, ADMIN, {"name": "x", "rules": ["+nosuchcommand"]}], "user 'x' are refused"),
            ([OFF, ADMIN, {"name": "x", "rules": [">clear"]}], "'>clear' is not a rule"),
        ],
    )
    def test_wrong_input_gives_a_reason_and_changes_nothing(
        self, server: Server, users: list[dict[str, Any]], words: str
    ) -> None:
        listed = server.call("ACL", "LIST")
        result = server.run(users=users, prune_users=True)
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
        failed = module(redis_runtime, **login)
        assert (failed["failed"], failed["status"], failed["changed"]) == (True, "refused", False)
        assert "does not serve its administrator 'admin'" in failed["msg"]
        assert "Check 'username' and 'password'" in failed["msg"]
        result = module(redis_runtime, **login, on_failure="report")
        assert (result["status"], result["restart_required"], result["changed"]) == ("refused", True, False)
        assert "WRONGPASS" in module(redis_runtime_info, **login)["msg"]

    def test_stopped(self, own: Server) -> None:
        own.start()
        own.stop()
        result = own.run(on_failure="report")
        assert (result["status"], result["changed"]) == ("unreachable", False)
        assert own.run(wait=0.5)["failed"]
        assert "Check 'host', 'port' and 'tls'" in own.run()["msg"]
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
        plaintext = own.run(on_failure="report")
        assert (plaintext["status"], "'tls'" in plaintext["message"]) == ("unreachable", True)
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

"""Settings that are not declared, compared with what a start from the server's file would give."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _redis_fresh as subject
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import Runtime
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisError


class Server:
    """What CONFIG shows and takes."""

    def __init__(self, **config: str) -> None:
        given = {name.replace("_", "-"): value for name, value in config.items()}
        self.config = {"maxmemory": "0", "maxmemory-policy": "noeviction", **given}
        self.calls: list[tuple[str, ...]] = []

    def call(self, *words: str) -> Any:
        if words[:2] == ("CONFIG", "GET"):
            return [word for pair in self.config.items() for word in pair]
        if words[0] == "CONFIG" and "celeryops-no-such-setting" in words:
            raise RedisError("Unknown option celeryops-no-such-setting")
        self.calls.append(words)
        return "OK"


def differences(server, settings=(), **fresh):
    runtime = Runtime(server, settings, None, fresh={name.replace("_", "-"): value for name, value in fresh.items()})
    found = runtime.differences()
    runtime.repair(found)
    return [(item.name, item.actual, item.declared) for item in found]


def test_undeclared_setting_is_restored():
    server = Server(hz="1", loglevel="debug")
    assert differences(server, hz="10", loglevel="debug") == [("hz", "1", "10")]
    assert server.calls == [("CONFIG", "SET", "hz", "10")]


def test_declared_setting_wins_over_the_file():
    server = Server(hz="20")
    assert differences(server, [{"name": "hz", "value": 20}], hz="10") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slave_read_only", "replica_read_only"),
        ("hash_max_ziplist_entries", "hash_max_listpack_entries"),
        ("lua_time_limit", "busy_reply_threshold"),
        ("masterauth", "primaryauth"),
    ],
)
def test_setting_with_two_names_is_reported_and_set_once(old, new):
    server = Server(**{old: "1", new: "1"})
    assert [name for name, *_ in differences(server, **{old: "2", new: "2"})] == [new.replace("_", "-")]
    assert len(server.calls) == 1


def test_replica_becomes_a_master_again():
    server = Server(replicaof="10.0.0.1 6379")
    assert differences(server, replicaof="") == [("replicaof", "10.0.0.1 6379", "")]
    assert server.calls == [("REPLICAOF", "NO", "ONE")]


def test_missing_program_or_user_is_reported(tmp_path):
    with pytest.raises(subject.NoStartError, match="no-such-user"):
        subject.fresh_settings("/etc/redis/redis.conf", "no-such-user")
    with pytest.raises(subject.NoStartError, match="no-such-program"):
        subject.fresh_settings("/etc/redis/redis.conf", "root", str(tmp_path / "no-such-program"))

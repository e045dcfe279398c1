"""What celery_diagnose reads on a host."""

from __future__ import annotations

import json
import sys

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _diagnose as subject

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0C2FD50A:A1B2 0B2FD50A:18EB 01 00000000:00000000 00:00000000 00000000  999        0 4711 1 0
   1: 0C2FD50A:A1B3 0B2FD50A:18EB 06 00000000:00000000 00:00000000 00000000  999        0 4712 1 0
   2: 0C2FD50A:A1B4 0B2FD50A:0016 01 00000000:00000000 00:00000000 00000000  999        0 4713 1 0
"""
TABLE6 = """  sl  local_address                         remote_address                        st tx rx uid timeout inode
   0: 0000000000000000FFFF00000C2FD50A:A1B5 0000000000000000FFFF00000B2FD50A:18EB 01 0:0 0:0 0 999 0 4714 1 0
   1: B80D0120000000000000000001000000:A1B6 B80D0120000000000000000002000000:18EB 01 0:0 0:0 0 999 0 4715 1 0
"""


def test_established_connections_to_the_ports_are_listed_as_redis_writes_them(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TABLE)
    (tmp_path / "net" / "tcp6").write_text(TABLE6)
    found = subject.sockets([6379], tmp_path)
    assert [(each["local"], each["inode"]) for each in found] == [
        ("10.213.47.12:41394", "4711"),
        ("10.213.47.12:41397", "4714"),
        ("[2001:db8::1]:41398", "4715"),
    ]


def test_the_slow_log_keeps_commands_and_keys_and_nothing_else():
    assert subject.slow_of([1, 5, 20_000, ["SET", "key", "secret"], "10.0.0.1:1", ""])["command"] == "SET key"
    assert subject.slow_of([1, 5, 20_000, ["AUTH", "secret"]])["command"] == "AUTH"
    assert subject.slow_of([1, 5, 20_000, ["keys", "*"]])["milliseconds"] == 20


def test_clients_are_read_as_they_stand():
    (client,) = subject.clients_of("id=3 addr=10.0.0.3:1 laddr=x name= age=5 idle=1 cmd=client|list user=celery\n")
    assert client == {
        "id": "3",
        "addr": "10.0.0.3:1",
        "name": "",
        "user": "celery",
        "age": "5",
        "idle": "1",
        "cmd": "client|list",
    }


def test_a_reading_that_was_stopped_keeps_what_it_has():
    text = json.dumps({"part": "redis", "data": {"x": 1}, "seconds": 0.1}) + "\n" + '{"part": "work'
    found = subject.parts_of(text, 5)
    assert found["redis"] == {"x": 1}
    assert found["errors"] == {"end": "it was stopped after 5 s"}


@pytest.fixture
def params(tmp_path):
    """Parameters of a host where nothing is as it should be."""
    return {
        "worker": {"environment_file": str(tmp_path / "none.env")},
        "redis": {
            "host": "127.0.0.1",
            "port": 1,
            "username": "a",
            "password": "b",
            "tls": False,
            "server_hostname": None,
            "ca_path": None,
            "client_cert": None,
            "client_key": None,
        },
        "rabbitmq": {"url": "http://127.0.0.1:1", "username": "a", "password": "b"},
        "units": [],
        "log_files": [],
        "lines": 5,
        "ports": [],
    }


def test_every_source_that_cannot_be_read_is_an_error_beside_what_could(params):
    found = subject.read_host(params, lambda secrets: None)
    assert set(found["errors"]) == {"worker", "redis", "rabbitmq"}
    assert found["errors"]["worker"].startswith("there is no ")
    assert found["sockets"] == []


def test_the_workers_secrets_are_hidden_before_anything_is_kept(params, tmp_path, monkeypatch, systemd_run):
    (tmp_path / "none.env").write_text("CELERY_BROKER_URL=redis://celery:open-sesame@h/0\n")
    told: set[str] = set()

    def run(**how):
        assert "open-sesame" in told
        assert "open-sesame" not in json.dumps(how["request"])
        return json.dumps({"part": "redis", "error": "open-sesame is wrong"}) + '\n{"end": true}\n'

    monkeypatch.setattr(subject, "run", run)
    params["worker"] |= {
        "python": sys.executable,
        "user": "x",
        "config_module": "c",
        "python_path": [],
        "nodes": [],
        "others": [],
        "timeout": 1,
        "limit": 5,
    }
    found = subject.read_host(params, told.update)
    assert found["worker"]["errors"] == {"redis": "******** is wrong"}


def test_the_end_of_a_log_is_kept(tmp_path):
    (tmp_path / "a.log").write_text("".join(f"line {i}\n" for i in range(1000)))
    assert subject.logs([str(tmp_path / "*.log")], 3) == {str(tmp_path / "a.log"): ["line 997", "line 998", "line 999"]}

"""Redis as the broker."""

from __future__ import annotations

import shlex

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://redis"]
CLI = ["redis-cli", "-p", "6380", "--tls", "--cacert", "/etc/redis/tls/ca.pem"]


def redis(root_shell, address, user, password, *command):
    """Run a command as a user of Redis; the password goes through the environment of the shell."""
    call = shlex.join([*CLI, "--no-auth-warning", "--user", user, *command])
    script = f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec {call}"
    return root_shell(address, script, f"{password}\n").stdout.strip()


def test_service_is_enabled_and_runs(host):
    service = host.service("redis-server")
    assert service.is_enabled
    assert wait_until(lambda: service.is_running)


def test_listens_only_where_declared(host, address):
    listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    assert {socket for socket in listening if ":63" in socket} == {"127.0.0.1:6380", f"{address}:6380"}


def test_stranger_is_refused(host):
    assert "NOAUTH" in host.run(shlex.join([*CLI, "ping"])).stdout


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("appendfsync", "everysec")],
)
def test_runs_with_what_is_declared(root_shell, address, secrets, parameter, value):
    answer = redis(root_shell, address, "admin", secrets["redis_admin"], "config", "get", parameter)
    assert answer.split() == [parameter, value]


def test_memory_is_bounded(root_shell, address, secrets):
    assert int(redis(root_shell, address, "admin", secrets["redis_admin"], "config", "get", "maxmemory").split()[1]) > 0


@pytest.mark.parametrize("command", ["config get maxmemory", "flushall", "keys *", "acl list", "shutdown"])
def test_celery_user_cannot_administrate(root_shell, address, secrets, command):
    assert "NOPERM" in redis(root_shell, address, "celery", secrets["redis"], *command.split())


def test_keys_are_private(host):
    files = host.check_output("find /etc/redis/tls -type f -printf '%f %U:%g %m\\n'").splitlines()
    assert sorted(file.partition(" ")[2] for file in files) == ["0:redis 640"] * 2


def test_files_with_secrets_are_private(host):
    readable = host.check_output("find /etc/redis -type f -perm /o+r")
    for path in readable.split():
        assert "user celery" not in host.file(path).content_string

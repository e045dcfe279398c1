"""Redis as the broker."""

from __future__ import annotations

import shlex

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://redis"]


def redis(root_shell, address, user, password, *command):
    """Run a command as a user of Redis; the password goes through the environment of the shell."""
    call = shlex.join(["redis-cli", "--no-auth-warning", "--user", user, *command])
    script = f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec {call}"
    return root_shell(address, script, f"{password}\n").stdout.strip()


def test_service_is_enabled_and_runs(host):
    service = host.service("redis-server")
    assert service.is_enabled
    assert wait_until(lambda: service.is_running)


def test_listens_only_where_declared(host, address):
    listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    assert {socket for socket in listening if socket.endswith(":6379")} == {"127.0.0.1:6379", f"{address}:6379"}


def test_stranger_is_refused(host):
    assert "NOAUTH" in host.run("redis-cli ping").stdout


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


def test_files_with_secrets_are_private(host):
    readable = host.check_output("find /etc/redis -type f -perm /o+r")
    for path in readable.split():
        assert "user celery" not in host.file(path).content_string

"""Adopting servers that others have set up, step by step: the steps of this file build on each other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from stack import INVENTORY, ROOT, STATE

PREPARE = Path(__file__).with_name("prepare.sh")
SECRETS = STATE / "secrets"
# Other names than those that the playbook expects.
GROUPS = {"redis_hosts": "brokers", "rabbitmq_hosts": "stores", "worker_hosts": "celery_nodes"}


def hosts():
    return yaml.safe_load(INVENTORY.read_text())["all"]["children"]["brokers"]["hosts"]


@pytest.fixture(scope="session")
def shell():
    (address,) = (variables["ansible_host"] for variables in hosts().values())

    def run(script, check=True):
        command = ["ssh", "-F", str(STATE / "ssh_config"), address, "sudo sh -s"]
        return subprocess.run(command, input=script, text=True, capture_output=True, check=check, timeout=600).stdout

    return run


@pytest.fixture(scope="session", autouse=True)
def others(shell):
    """A Redis and a RabbitMQ with data elsewhere, a password, users, and a queue."""
    shell(PREPARE.read_text())


@pytest.fixture(scope="session")
def site():
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_SSH_COMMON_ARGS": f"-F {STATE / 'ssh_config'}",
        "ANSIBLE_NOCOLOR": "1",
    }

    def run(tag, **variables):
        command = ["ansible-playbook", "-i", str(INVENTORY), "celeryops.hybrid.site", "--tags", tag]
        command += ["-e", json.dumps({**GROUPS, **variables})]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=900
        )
        # Ansible wraps what a task says.
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def refused(outcome, *words):
    code, said = outcome
    assert code == 2, said[-3000:]
    assert "changed=0" in said
    assert [word for word in words if word not in said] == [], said[-3000:]


def done(outcome):
    code, said = outcome
    assert code == 0, said[-3000:]


def test_redis_users_of_others_are_named_and_nothing_changes(site):
    refused(site("redis"), "would delete its users reports", "redis_adopt")


def test_redis_keeps_data_elsewhere_and_saves_users(site, shell):
    done(site("redis", redis_adopt=True))
    password = (SECRETS / "redis_admin").read_text().strip()
    assert shell(f"REDISCLI_AUTH='{password}' redis-cli --user admin LLEN celery") == "3\n"
    assert "user reports on" in shell("cat /var/backups/celeryops/redis-users-*.acl")
    assert shell("ls /srv/redis/appendonlydir")


def test_rabbitmq_with_its_data_elsewhere_is_not_started_empty(site):
    refused(site("rabbitmq"), "/srv/rabbitmq/rabbit@localhost", "rabbitmq_data_directory to /srv/rabbitmq")


ELSEWHERE = {"rabbitmq_data_directory": "/srv/rabbitmq"}


def test_rabbitmq_users_of_others_are_named_and_nothing_changes(site, shell):
    refused(site("rabbitmq", **ELSEWHERE), "users legacyapp", "users app", "permissions celery/app", "rabbitmq_adopt")
    assert "guest" in shell("rabbitmqctl -q list_users")


def test_node_name_that_does_not_resolve_to_the_address_is_refused(site):
    refused(
        site("rabbitmq", **ELSEWHERE, rabbitmq_distribution_address="127.0.0.9"),
        "resolves to 127.0.0.1, and rabbitmq_distribution_address is 127.0.0.9",
    )


def test_rabbitmq_is_adopted_with_its_data_and_the_protected_users(site, shell):
    done(site("rabbitmq", **ELSEWHERE, rabbitmq_protected=["app", "legacyapp"]))
    assert "precious" in shell("rabbitmqctl -q list_queues -p celery")
    users = shell("rabbitmqctl -q list_users")
    assert {"app", "legacyapp", "worker"} <= {line.split()[0] for line in users.splitlines()}
    assert "guest" not in users
    assert "RABBITMQ_MNESIA_BASE" in shell("cat /var/backups/celeryops/*/etc/rabbitmq/rabbitmq-env.conf")
    assert '"legacyapp"' in shell("cat /var/backups/celeryops/rabbitmq-definitions-*.json")
    assert "[::1]:5672" in shell("ss -Hltn")

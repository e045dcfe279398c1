"""Bad input ends a play early, with an error that names variable or host and remedy, and changes nothing."""

from __future__ import annotations

import json
import re
import socket

import pytest

testinfra_hosts = ["ansible://redis"]

STRANGER = "a-password-that-nobody-knows-42"
REFUSALS = {
    "missing password": ("redis", {"redis_password": ""}, r"redis_password.*openssl rand -hex 24"),
    "weak password": ("rabbitmq", {"rabbitmq_worker_password": "short"}, r"rabbitmq_worker_password.*16 characters"),
    "malformed broker URL": ("worker", {"worker_broker_url": "http://broker"}, r"worker_broker_url.*redis://"),
    "malformed result URL": ("worker", {"worker_result_backend": "rpc://"}, r"worker_result_backend.*amqp://"),
    "unknown queue type": (
        "rabbitmq",
        {"rabbitmq_queues": [{"name": "orders", "type": "mirrored"}]},
        r"value of type must be one of: classic, quorum, stream, got: mirrored found in rabbitmq_queues",
    ),
    "wrong type": ("redis", {"redis_port": "many"}, r"redis_port.*(int|number)"),
    "eviction": ("redis", {"redis_config": {"maxmemory-policy": "allkeys-lru"}}, r"maxmemory-policy.*noeviction"),
    "certificate that is not there": (
        "redis",
        {"redis_tls_certificate": "/nowhere/broker1.pem"},
        r"redis_tls_certificate \(/nowhere/broker1.pem\).*celeryops.hybrid.certificates",
    ),
    "certificate for another name": (
        "rabbitmq",
        {"rabbitmq_tls_names": ["results.example.org"]},
        r"rabbitmq_tls_certificate.*is not for results.example.org",
    ),
    "no port at all": ("redis", {"redis_tls_enabled": False}, r"redis_plain_enabled is false.*redis_tls_enabled"),
    "application that is not there": ("worker", {"worker_app_source": "/nowhere"}, r"worker_app_source.*/nowhere"),
    "limit above the visibility timeout": (
        "worker",
        {"worker_task_time_limit": 7200, "worker_visibility_timeout": 3600},
        r"worker_visibility_timeout.*worker_task_time_limit",
    ),
    "two instances of one name": (
        "worker",
        {"worker_instances": [{"name": "a", "queues": ["a"]}, {"name": "a", "queues": ["b"]}]},
        r"worker_instances",
    ),
    "another number of partitions": ("rabbitmq", {"rabbitmq_partitions": 8}, r"rabbitmq_partitions"),
}


def changed(output):
    """How many things changed, over all hosts of the recap."""
    return sum(int(number) for number in re.findall(r"changed=(\d+)", output))


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_before_anything_changes(ansible_playbook, secrets, name):
    role, variables, sentence = REFUSALS[name]
    done = ansible_playbook("site", "--tags", role, "--extra-vars", json.dumps(variables))
    assert done.returncode != 0, done.stdout
    assert re.search(sentence, " ".join(done.stdout.split())), done.stdout
    assert changed(done.stdout) == 0, done.stdout
    assert not [key for key, secret in secrets.items() if secret in done.stdout]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        # Ports of the very servers on which nobody listens.
        ({"redis_tls_port": 6390}, r"cannot reach Redis at \S+ port 6390.*redis_tls_port"),
        ({"rabbitmq_tls_port": 5690}, r"cannot reach RabbitMQ at \S+ port 5690.*rabbitmq_tls_port"),
        ({"redis_password": STRANGER}, r"cannot log in to Redis.*redis_password"),
        ({"rabbitmq_worker_password": STRANGER}, r"RabbitMQ.*rabbitmq_worker_password"),
    ],
)
def test_server_that_does_not_let_workers_in_is_named(ansible_playbook, variables, sentence):
    done = ansible_playbook("site", "--tags", "worker", "--extra-vars", json.dumps(variables))
    assert done.returncode != 0, done.stdout
    assert re.search(sentence, " ".join(done.stdout.split())), done.stdout
    assert changed(done.stdout) == 0, done.stdout
    assert STRANGER not in done.stdout


@pytest.fixture
def broken_application(tmp_path):
    """An application that installs and does not import."""
    package = tmp_path / "src" / "payments"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "payments"\nversion = "99"\n'
    )
    return tmp_path


def test_application_that_does_not_import_leaves_the_old_one_running(
    ansible_playbook, root_shell, addresses, broken_application
):
    show = "systemctl show --property=MainPID --value celery-worker@default"
    before = root_shell(addresses["worker"], show).stdout
    done = ansible_playbook(
        "site", "--tags", "worker", "--extra-vars", json.dumps({"worker_app_source": str(broken_application)})
    )
    assert done.returncode != 0, done.stdout
    assert re.search(r"a_module_that_nobody_has.*worker_app", " ".join(done.stdout.split())), done.stdout
    assert root_shell(addresses["worker"], show).stdout == before


def test_worker_that_starts_and_dies_is_reported_with_its_journal(ansible_playbook, root_shell, addresses):
    instances = [
        {"name": "default", "queues": ["celery"], "concurrency": 2},
        {"name": "slow", "queues": ["slow"], "concurrency": 1},
        {"name": "dying", "queues": ["celery"], "options": ["--no-such-option"]},
    ]
    try:
        done = ansible_playbook("site", "--tags", "worker", "--extra-vars", json.dumps({"worker_instances": instances}))
        assert done.returncode != 0, done.stdout
        assert re.search(r"celery-worker@dying.*no-such-option", " ".join(done.stdout.split())), done.stdout
    finally:
        repaired = ansible_playbook("site", "--tags", "worker")
    assert repaired.returncode == 0, repaired.stdout
    assert root_shell(addresses["worker"], "systemctl is-enabled celery-worker@dying").stdout.strip() != "enabled"


def test_host_that_cannot_be_reached_ends_the_play(ansible_playbook, tmp_path):
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(f"[worker]\ngone1 ansible_host=127.0.0.1 ansible_port={free_port()}\n")
    done = ansible_playbook("verify", inventory=inventory)
    assert done.returncode != 0
    assert "gone1" in done.stdout
    assert "UNREACHABLE" in done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

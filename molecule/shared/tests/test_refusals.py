"""Bad input ends a play early, with a sentence that names variable or host and remedy, and changes nothing."""

from __future__ import annotations

import json
import re
import socket

import pytest

testinfra_hosts = ["ansible://redis"]

REFUSALS = {
    "missing password": ("redis", {"redis_password": ""}, r"redis_password.*openssl rand -hex 24"),
    "weak password": ("rabbitmq", {"rabbitmq_worker_password": "short"}, r"rabbitmq_worker_password.*16 characters"),
    "malformed broker URL": ("worker", {"worker_broker_url": "http://broker"}, r"worker_broker_url.*redis://"),
    "malformed result URL": ("worker", {"worker_result_backend": "rpc://"}, r"worker_result_backend.*amqp://"),
    "unknown queue type": (
        "rabbitmq",
        {"rabbitmq_dead_letter_queue_type": "mirrored"},
        r"rabbitmq_dead_letter_queue_type.*(quorum|classic)",
    ),
    "wrong type": ("redis", {"redis_port": "many"}, r"redis_port.*(int|number)"),
    "eviction": ("redis", {"redis_config": {"maxmemory-policy": "allkeys-lru"}}, r"maxmemory-policy.*noeviction"),
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
        ({"worker_redis_host": "10.213.255.1"}, r"10\.213\.255\.1.*6379"),
        ({"worker_rabbitmq_host": "10.213.255.1"}, r"10\.213\.255\.1.*5672"),
    ],
)
def test_server_that_cannot_be_reached_is_named(ansible_playbook, variables, sentence):
    done = ansible_playbook("site", "--tags", "worker", "--extra-vars", json.dumps(variables))
    assert done.returncode != 0, done.stdout
    assert re.search(sentence, " ".join(done.stdout.split())), done.stdout
    assert changed(done.stdout) == 0, done.stdout


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

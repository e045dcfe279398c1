"""A certificate is replaced while tasks run: only new connections notice."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading

import pytest

from stack import PROJECT, STATE

PORTS = {"redis": 6380, "rabbitmq": 5671}
UNITS = {"redis": "redis-server", "rabbitmq": "rabbitmq-server", "worker": "celery-worker@default"}
STOP = "/run/celeryops-test-stop"

# Sends tasks one after the other until it is told to stop.
STEADY = """
import json, os, sys, time
os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"] = sys.stdin.readline().split()
os.environ["CELERY_CONFIG_MODULE"] = "celeryconfig"
sys.path.insert(0, "/etc/celery")
from payments import app

done, failed = 0, []
while not os.path.exists("STOP"):
    try:
        assert app.send_task("payments.add", (done, 1)).get(timeout=30) == done + 1
        done += 1
    except Exception as exc:
        failed.append(repr(exc))
    time.sleep(0.05)
print(json.dumps({"done": done, "failed": failed}))
""".replace("STOP", STOP)


@pytest.fixture
def state(root_shell, addresses):
    """When each server and the worker were started, and how often."""

    def look():
        show = "systemctl show --property=MainPID,NRestarts,ActiveEnterTimestampMonotonic"
        return {group: root_shell(addresses[group], f"{show} {unit}").stdout for group, unit in UNITS.items()}

    return look


def shown(addresses):
    """The certificate that each server shows to new connections."""
    trusted = ssl.create_default_context(cafile=STATE / "tls" / PROJECT / "ca.pem")
    found = {}
    for group, port in PORTS.items():
        with (
            socket.create_connection((addresses[group], port), 10) as plain,
            trusted.wrap_socket(plain, server_hostname=addresses[group]) as connection,
        ):
            found[group] = hashlib.sha256(connection.getpeercert(binary_form=True)).hexdigest()
    return found


def test_replaced_without_an_outage(ansible_playbook, root_shell, addresses, urls, state):
    before, certificates = state(), shown(addresses)
    told = {}

    def work():
        script = (
            "exec /opt/celery/venv/bin/python -c 'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
        )
        source = f"{len(STEADY)}\n{STEADY}{urls['broker']} {urls['results']}\n"
        told["done"] = root_shell(addresses["worker"], script, source, timeout=900)

    root_shell(addresses["worker"], f"rm -f {STOP}")
    worker = threading.Thread(target=work)
    worker.start()
    try:
        # All of them end within so many days.
        renewed = ansible_playbook("certificates", "-e", "certificates_renew_days=3000")
        assert renewed.returncode == 0, renewed.stdout
        # Not on the hosts before the roles have brought them there.
        assert shown(addresses) == certificates
        deployed = ansible_playbook("site")
        assert deployed.returncode == 0, deployed.stdout
    finally:
        root_shell(addresses["worker"], f"touch {STOP}")
        worker.join()
        root_shell(addresses["worker"], f"rm -f {STOP}")
    after = shown(addresses)
    assert {group for group in PORTS if after[group] == certificates[group]} == set()
    assert state() == before
    work = json.loads(told["done"].stdout)
    assert work["failed"] == []
    assert work["done"] > 10
    changed = dict(re.findall(r"^(\w+)\s+: ok=\d+\s+changed=(\d+)", deployed.stdout, re.MULTILINE))
    assert changed["worker1"] == "0"


def test_a_server_that_has_not_read_its_file_is_told_to(ansible_playbook, root_shell, addresses, state):
    """As after a run that ended between the two."""
    before, certificates = state(), shown(addresses)
    renewed = ansible_playbook("certificates", "-e", "certificates_renew_days=3000")
    assert renewed.returncode == 0, renewed.stdout
    folder = STATE / "tls" / PROJECT
    pair = (folder / "results1.key").read_text().rstrip("\n") + "\n" + (folder / "results1.pem").read_text()
    assert root_shell(addresses["rabbitmq"], "cat > /etc/rabbitmq/tls/server.pem", pair).returncode == 0
    deployed = ansible_playbook("site", "--tags", "redis,rabbitmq")
    assert deployed.returncode == 0, deployed.stdout
    after = shown(addresses)
    assert {group for group in PORTS if after[group] == certificates[group]} == set()
    assert state() == before

"""Real tasks through the deployed stack, sent and read with the rights of an application."""

from __future__ import annotations

import json

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://worker"]

# Runs on the worker host because Celery is there; it uses the client's own user, not the worker's.
PROLOGUE = """
import json, os, sys
os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"] = sys.stdin.readline().split()
os.environ["CELERY_CONFIG_MODULE"] = "celeryconfig"
sys.path.insert(0, "/etc/celery")
from payments import app
from celery.result import AsyncResult
"""


@pytest.fixture
def client(address, root_shell, urls):
    """Run a program in a fresh process of an application; return what it prints as JSON."""

    def run(program):
        # The program comes on the same input as the URLs, so nothing secret is in a command line.
        # The instances of a host share it.
        told = json.loads(root_shell(address, "celery inspect result_store --json --timeout 2").stdout)
        return max(state["outbox"]["count"] for state in told.values())

    assert root_shell(addresses["rabbitmq"], "systemctl stop rabbitmq-server").returncode == 0
    try:
        ids = client("print(json.dumps([app.send_task('payments.add', (n, n)).id for n in range(5)]))")
        # STARTED and SUCCESS of each.
        wait_until(lambda: waiting() == 10, 60)
        assert root_shell(address, f"stat -c '%U %a' {outbox}").stdout == "celery 600\n"
        told = root_shell(address, "celery result-store").stdout
        assert "10 results" in told
        # What waits survives the worker as well.
        assert root_shell(address, "systemctl restart celery-worker@default").returncode == 0
    finally:
        assert root_shell(addresses["rabbitmq"], "systemctl start rabbitmq-server").returncode == 0
    program = f"print(json.dumps([AsyncResult(i, app=app).get(timeout=60) for i in {ids}]))"
    assert client(program) == [0, 2, 4, 6, 8]
    wait_until(lambda: waiting() == 0, 60)

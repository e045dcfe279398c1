"""What the diagnosis says is stuck is recovered with the `purge` playbook, and not before file and workers are aligned.

After the symptoms, which must not find the traces of these tests.
"""

from __future__ import annotations

from typing import Any

import pytest

# Seconds that are left to kill the worker in the middle of the task.
TASK_SECONDS = 20
STUCK = f"""
task=$(python "import time; c = app.connection_for_write().default_channel.client
task = app.send_task('troubles.sleep', [{TASK_SECONDS}], queue='slow').id
while not c.zcard('unacked_index'): time.sleep(0.1)
print(task)")
systemctl kill --signal=KILL --kill-whom=all celery-worker@slow
# Younger claims may be on their way.
python "c = app.connection_for_write().default_channel.client
for tag, at in c.zrange('unacked_index', 0, -1, withscores=True): c.zadd('unacked_index', {{tag: at - 120}})"
for _ in $(seq 100); do control --destination slow@worker1 heartbeat >/dev/null 2>&1 && break; sleep 0.1; done
echo $task
"""
ODD = """
mkdir -p /tmp/odd
printf 'from celeryconfig import *\\naccept_content = ["json", "yaml"]\\n' >/tmp/odd/oddconfig.py
chmod -R a+rX /tmp/odd
CONFIG=oddconfig service --unit=odd --collect \\
  /opt/celery/venv/bin/celery -A troubles worker -n odd@worker1 -Q orphans -c 1
for _ in $(seq 100); do control --destination odd@worker1 heartbeat >/dev/null 2>&1 && break; sleep 0.1; done
"""
RECOVER = ("-e", "purge_action=recover", "-e", "purge_gone=true")
EXECUTE = (*RECOVER, "-e", "purge_execute=true")


@pytest.fixture
def result(shell: Any) -> Any:
    """Wait for a task; return its state."""

    def get(task: str) -> str:
        program = f"r = app.AsyncResult('{task}'); r.get(timeout=90); print(r.state)"
        return str(shell("worker", f'python "{program}"').split()[-1])

    return get


def test_a_task_of_a_dead_worker_is_recovered_once_the_workers_are_aligned(
    shell: Any, playbook: Any, result: Any
) -> None:
    task = shell("worker", STUCK).split()[-1]
    seen = playbook("purge")
    assert seen.returncode == 0, seen.stdout
    assert f"troubles.sleep[{task}]  slow" in seen.stdout
    assert "no worker that answers has it" in " ".join(seen.stdout.split())
    try:
        shell("worker", ODD)
        refused = playbook("purge", *EXECUTE)
        words = " ".join(refused.stdout.split())
        assert refused.returncode == 2, refused.stdout
        assert "Nothing was changed, because file and workers are not seen aligned" in words
        assert "odd@worker1: accept_content is json, yaml, the file says json" in words
    finally:
        shell("worker", "systemctl stop odd")
    # Young claims count only when the operator says that their workers are dead; and nothing is done unasked.
    told = playbook("purge", "-e", "purge_action=recover")
    assert "0 of 1 unacknowledged are stuck" in told.stdout, told.stdout
    told = playbook("purge", *RECOVER)
    assert "1 of 1 unacknowledged are stuck" in told.stdout, told.stdout
    done = playbook("purge", *EXECUTE)
    assert done.returncode == 0, done.stdout
    assert "1 of 1 unacknowledged are back in their queues" in done.stdout
    assert result(task) == "SUCCESS"
    print(
        "\ncounted: 1 unacknowledged task stuck, refused to recover beside a worker with yaml, then recovered and done"
    )


def test_results_of_a_host_without_workers_are_delivered(shell: Any, playbook: Any, result: Any) -> None:
    shell("servers", "systemctl stop rabbitmq-server")
    try:
        task = shell("worker", "python \"print(app.send_task('troubles.sleep', [0], queue='slow').id)\"").split()[-1]
        # STARTED and SUCCESS.
        wait = (
            'until /usr/local/sbin/celery tasks list -t 1 --json | grep -E \'"results", "path": "[^"]+", "count": 2,\''
        )
        shell("worker", f"{wait}; do sleep 0.2; done")
        shell("worker", "systemctl stop 'celery-worker@*'")
    finally:
        shell("servers", "systemctl start rabbitmq-server")
    try:
        done = playbook("purge", "-e", "purge_action=deliver", "-e", "purge_execute=true")
        assert done.returncode == 0, done.stdout
        assert "results delivered." in done.stdout
        assert result(task) == "SUCCESS"
        print("\ncounted: 1 result stuck on a host without workers, delivered and read")
    finally:
        shell("worker", "systemctl start celery-worker@default celery-worker@slow")

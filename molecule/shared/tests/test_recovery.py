"""What people on call do at night: look at dead letters, purge a queue into a file, put it back."""

from __future__ import annotations

import json
import uuid

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://worker"]


@pytest.fixture
def slow(root_shell, address):
    """Let the worker of the queue slow consume it, or not; it answers all the same."""
    (node,) = [
        name
        for name in json.loads(root_shell(address, "celery inspect ping --json --timeout 2").stdout)
        if name.startswith("slow@")
    ]

    def control(command):
        done = root_shell(address, f"celery control --destination {node} {command} slow")
        assert done.returncode == 0, done.stderr

    control("cancel_consumer")
    yield control
    control("add_consumer")


def test_dead_letters_are_listed_with_the_rights_for_it(ansible_playbook, client, secrets):
    task_id = client(
        "r = app.send_task('payments.fail', ('night shift',))\n"
        "try: r.get(timeout=20)\nexcept Exception: pass\nprint(json.dumps(r.id))"
    )
    done = ansible_playbook("dead_letters", "-e", "letters_task=payments.fail", "-e", f"letters_ids={task_id}")
    assert done.returncode == 0, done.stdout
    assert "night shift" in done.stdout
    assert "1 failed" in done.stdout
    assert not [name for name, secret in secrets.items() if secret in done.stdout]


def test_a_queue_is_purged_into_a_file_and_put_back(ansible_playbook, client, root_shell, address, slow):
    ids = client("print(json.dumps([app.send_task('payments.add', (n, 1), queue='slow').id for n in range(3)]))")
    path = f"/var/lib/celery/{uuid.uuid4()}.jsonl"
    arguments = ["-e", "purge_action=purge", "-e", "purge_queue=slow", "-e", f"purge_file={path}"]
    execute = [*arguments, "-e", "purge_execute=true"]
    refused = ansible_playbook("purge", *execute, "-e", '{"purge_nodes": ["nobody@nowhere"]}')
    assert refused.returncode == 2, refused.stdout
    assert "no answer from nobody@nowhere" in refused.stdout
    assert root_shell(address, f"test -e {path}").returncode == 1
    done = ansible_playbook("purge", *execute)
    assert done.returncode == 0, done.stdout
    assert f"3 messages of queue slow moved to {path}" in done.stdout
    assert root_shell(address, f"stat -c '%U %a' {path}").stdout == "celery 600\n"
    found = [json.loads(line)["id"] for line in root_shell(address, f"cat {path}").stdout.splitlines()]
    assert found == ids
    assert "3 messages put back, 0 were" in root_shell(address, f"celery tasks put-back --execute {path}").stdout
    slow("add_consumer")
    program = f"print(json.dumps([AsyncResult(i, app=app).get(timeout=60) for i in {ids}]))"
    assert wait_until(lambda: client(program), 60) == [1, 2, 3]

"""Real tasks through the deployed stack, sent and read with the rights of an application."""

from __future__ import annotations

import json

from stack import wait_until

testinfra_hosts = ["ansible://worker"]


def test_task_gives_its_result(client):
    assert client("print(json.dumps(app.send_task('payments.add', (2, 3)).get(timeout=20)))") == 5


def test_result_survives_a_restart_of_rabbitmq_between_task_and_get(client, root_shell, addresses):
    task_id = client(
        "r = app.send_task('payments.add', (20, 3)); r.get(timeout=20); print(json.dumps(r.id))",
    )
    restart = root_shell(addresses["rabbitmq"], "systemctl restart rabbitmq-server")
    assert restart.returncode == 0, restart.stderr
    # Another process, which has never seen the task, twice.
    for _ in range(2):
        assert client(f"r = AsyncResult('{task_id}', app=app); print(json.dumps([r.state, r.get(timeout=20)]))") == [
            "SUCCESS",
            23,
        ]


def test_nothing_of_a_result_is_in_redis(client, urls):
    leftovers = client(
        "r = app.send_task('payments.add', (1, 1)); r.get(timeout=20)\n"
        "import redis\n"
        "server = redis.Redis.from_url(os.environ['CELERY_BROKER_URL'])\n"
        "print(json.dumps([key.decode() for key in server.scan_iter(count=1000) if r.id in key.decode()]))"
    )
    assert leftovers == []


def test_groups_and_chords(client):
    program = (
        "from celery import chord, group\n"
        "add, total = app.signature('payments.add'), app.signature('payments.total')\n"
        "parts = group(add.clone((n, n)) for n in range(5)).apply_async()\n"
        "whole = chord([add.clone((n, 1)) for n in range(3)], total).apply_async()\n"
        "print(json.dumps([parts.get(timeout=30), whole.get(timeout=30)]))"
    )
    assert client(program) == [[0, 2, 4, 6, 8], 6]


def test_queues_go_to_their_instances(client):
    program = "r = app.send_task('payments.where', queue='{queue}'); print(json.dumps(r.get(timeout=20)))"
    assert client(program.format(queue="celery")).startswith("default@")
    assert client(program.format(queue="slow")).startswith("slow@")


def test_results_wait_on_the_worker_while_rabbitmq_is_away(client, root_shell, address, addresses):
    outbox = "/var/lib/celery/outbox.sqlite3"

    def waiting():
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

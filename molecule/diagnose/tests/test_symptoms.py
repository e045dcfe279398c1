"""Every known symptom is produced on purpose and recognised, and nothing else is; a clean deployment has no findings.

Symptoms that do not disturb each other are produced together, and looked at once.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Trouble:
    """A symptom, made on purpose.

    Attributes:
        finding: the id by which it must be recognised.
        host: where it is made: servers or worker.
        make: a script that makes it, and returns when it is there.
        mend: a script that takes it away.
        words: what the finding must name.
        also: ids of findings that may follow from it.
    """

    finding: str
    host: str
    make: str
    mend: str = ""
    words: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


# What was in the hands of workers that were killed.
FORGET = (
    "python \"c = app.connection_for_write().default_channel.client; c.delete('celery', 'unacked', 'unacked_index')\""
)
STARVED = """
mkdir -p /tmp/odd
cat >/tmp/odd/oddconfig.py <<'ODD'
from celeryconfig import *
accept_content = ["json", "yaml"]
worker_prefetch_multiplier = 5
ODD
chmod -R a+rX /tmp/odd
control --destination default@worker1 cancel_consumer celery
CONFIG=oddconfig service --unit=greedy --collect /opt/celery/venv/bin/celery -A troubles worker \
  -n greedy@worker1 -Q celery -c 1
for _ in $(seq 60); do control --destination greedy@worker1 heartbeat >/dev/null 2>&1 && break; done
python "[app.send_task('troubles.sleep', [90]) for _ in range(4)]; import time; time.sleep(3)"
control --destination default@worker1 add_consumer celery
"""

TOGETHER = [
    Trouble(
        "rabbitmq.alarm",
        "servers",
        # Its statistics are some seconds old.
        "rabbitmqctl -q set_vm_memory_high_watermark absolute 20MB; sleep 8",
        "rabbitmqctl -q set_vm_memory_high_watermark absolute 2GB",
        ("servers1", "memory"),
        ("results.outbox",),
    ),
    Trouble(
        "results.never_expire",
        "servers",
        "rabbitmqctl -q clear_policy -p celery celery.results",
        'rabbitmqctl -q set_policy -p celery --apply-to queues celery.results "^celery\\.results\\.\\d+$" '
        '\'{"max-age":"86400s"}\'',
        ("16 of 16",),
    ),
    Trouble(
        "results.in_redis", "servers", "admin SET celery-task-meta-1 x", "admin DEL celery-task-meta-1", ("1 keys",)
    ),
    Trouble(
        "redis.memory",
        "servers",
        "admin CONFIG SET maxmemory 0; admin SETRANGE filler 60000000 x; "
        "used=$(admin INFO memory | sed -n 's/^used_memory:\\([0-9]*\\).*/\\1/p'); "
        # Making the filler is slow.
        "admin CONFIG SET maxmemory $((used * 107 / 100)); admin SLOWLOG RESET",
        "admin UNLINK filler; admin CONFIG SET maxmemory 2gb; admin SLOWLOG RESET",
        ("nearly full",),
    ),
    Trouble(
        "queue.no_consumer",
        "worker",
        "python \"app.send_task('troubles.sleep', [0], queue='orphans', serializer='pickle')\"",
        "python \"app.connection_for_write().default_channel.client.delete('orphans')\"",
        ("orphans", "1 message"),
        # One of the two that are asserted below.
        ("serializers.mixed",),
    ),
    Trouble(
        "prefetch.starvation",
        "worker",
        STARVED,
        f"systemctl kill --signal=KILL --kill-whom=all greedy; {FORGET}",
        ("greedy@worker1", "default@worker1"),
        ("serializers.mixed",),
    ),
    Trouble(
        "unacked.stuck",
        "worker",
        "python \"app.send_task('troubles.sleep', [600], queue='slow', task_id='stuck-on-purpose')\"; sleep 3; "
        "systemctl kill --signal=KILL --kill-whom=all celery-worker@slow; sleep 1; "
        "for _ in $(seq 60); do systemctl is-active -q celery-worker@slow && break; sleep 0.5; done; sleep 5",
        "systemctl restart celery-worker@slow",
        ("troubles.sleep stuck-on-purpose", "slow"),
        ("unit.restarts",),
    ),
]

HANGING = [
    Trouble(
        "worker.hangs",
        "worker",
        # As after a connection that was lost without a word: it stands still, and Redis has no connection of it.
        "systemctl kill --signal=STOP --kill-whom=main celery-worker@default",
        "systemctl kill --signal=CONT --kill-whom=main celery-worker@default",
        ("default@worker1", "connections to Redis"),
    ),
    Trouble(
        "pool.exhausted",
        "worker",
        "python \"app.send_task('troubles.hold', [120], queue='slow')\"; sleep 4",
        'touch /var/lib/celery/let-go; python "import time; c = app.connection_for_write().default_channel.client; '
        "[time.sleep(0.2) for _ in range(600) if c.zcard('unacked_index')]\"; rm /var/lib/celery/let-go",
        ("celery-worker@slow", "broker_pool_limit is"),
    ),
]

DOWN = [
    Trouble(
        "redis.down", "servers", "systemctl stop redis-server", "systemctl start redis-server", ("servers1", "inactive")
    ),
    Trouble("redis.unreachable", "worker", "true", "true", ("worker1",)),
    Trouble(
        "rabbitmq.down", "servers", "systemctl stop rabbitmq-server", "systemctl start rabbitmq-server", ("servers1",)
    ),
    Trouble(
        "worker.down",
        "worker",
        "systemctl stop celery-worker@slow",
        "systemctl start celery-worker@slow",
        ("slow@worker1", "inactive"),
    ),
    Trouble("host.unreachable", "worker", "true", "true", ("ghost",)),
]

GHOST = "all: {children: {worker: {hosts: {ghost: {ansible_host: 10.213.47.99}}}}}\n"


def wait_until_clean(diagnose: Any) -> None:
    """A worker that has just been started needs a moment."""
    deadline = time.monotonic() + 60
    while (bundle := diagnose())["findings"] and time.monotonic() < deadline:
        time.sleep(2)
    assert bundle["findings"] == []


def test_a_clean_deployment_has_no_findings(diagnose: Any) -> None:
    bundle = diagnose()
    assert bundle["findings"] == []
    assert "No findings. Looked at 2 of 2 hosts, 2 of 2 workers" in bundle["printed"]
    # On a machine that has nothing else to do.
    assert bundle["took"] < 15 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    print(f"\ncounted: nothing is wrong, told in {bundle['took']:.1f} s")
    nodes = bundle["hosts"]["worker1"]["worker"]["workers"]["nodes"]
    wanted = {
        "stats",
        "active",
        "reserved",
        "scheduled",
        "active_queues",
        "registered",
        "conf",
        "result_store",
        "pools",
    }
    assert set(nodes) == {"default@worker1", "slow@worker1"}
    for answers in nodes.values():
        assert set(answers) == wanted | {"result_store", "pools"}
    lists = {(item["queue"], item["priority"]) for item in bundle["hosts"]["worker1"]["worker"]["redis"]["queues"]}
    assert lists == {(queue, step) for queue in ("celery", "orphans", "slow") for step in (0, 3, 6, 9)}
    kinds = {client["kind"] for client in bundle["redis_clients"]}
    assert kinds == {"ours"}
    owners = {client["owner"] for client in bundle["redis_clients"]}
    assert {"worker1 celery-worker@default.service", "worker1 celery-worker@slow.service"} <= owners
    for host in ("servers1", "worker1"):
        # Beat, which is not to run here, has none.
        assert all(unit["journal"] for unit in bundle["hosts"][host]["units"] if unit["active"] == "active")


@pytest.mark.parametrize("troubles", [TOGETHER, HANGING, DOWN], ids=["together", "hanging", "down"])
def test_symptoms_are_recognised(troubles: list[Trouble], diagnose: Any, shell: Any, tmp_path: Path) -> None:
    ghost = tmp_path / "ghost.yml"
    ghost.write_text(GHOST)
    more = ("-i", str(ghost)) if troubles is DOWN else ()
    made: list[Trouble] = []
    try:
        for trouble in troubles:
            made.append(trouble)
            shell(trouble.host, trouble.make)
        bundle = diagnose(*more)
    finally:
        for trouble in made:
            shell(trouble.host, trouble.mend)
    found = {finding["id"]: str(finding) for finding in bundle["findings"]}
    assert {trouble.finding for trouble in troubles} <= set(found), bundle["printed"]
    allowed = {each for trouble in troubles for each in (trouble.finding, *trouble.also)}
    assert set(found) <= allowed, bundle["printed"]
    for trouble in troubles:
        for word in trouble.words:
            assert any(word in str(f) for f in bundle["findings"] if f["id"] == trouble.finding), (word, found)
    for finding in bundle["findings"]:
        assert finding["symptom"] in bundle["printed"].replace("\n", " ").replace("    ", "")
        assert all((finding["evidence"], finding["cause"], finding["remedy"]))
    print(f"\ncounted: {len(troubles)} troubles made and recognised, {len(found)} findings, in {bundle['took']:.1f} s")
    if troubles is TOGETHER:
        serializers = [f for f in bundle["findings"] if f["id"] == "serializers.mixed"]
        assert {"Workers do not agree on accept_content", "The queue orphans holds messages that workers refuse"} == {
            f["symptom"] for f in serializers
        }


def test_what_was_mended_is_found_no_more(diagnose: Any, shell: Any) -> None:
    # Restarts are told for an hour.
    shell("worker", "systemctl restart 'celery-worker@*'")
    wait_until_clean(diagnose)

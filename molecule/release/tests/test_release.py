"""Releases and drains under constant load: no task is lost, none is stuck, and work never stops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from releasing import (
    ADDRESSES,
    HERE,
    UNIT,
    VERSIONS,
    as_worker,
    release,
    served,
    serves,
    shell,
    started,
    status,
    version,
    wheel,
)

from stack import INVENTORY, ROOT, STATE, wait_until

# The longest that nothing may end with the other host at work: four long tasks of 12 s may hold all of its processes.
GAP = 30.0
# The longest that a task may be late: drained, put back, behind what has piled up. The visibility timeout is 3600 s.
LATE = 300.0
CLOSE = 0.3


@pytest.fixture(scope="module")
def load():
    """A sender on a host that stays; what each phase took."""
    VERSIONS.mkdir(parents=True, exist_ok=True)
    put = shell("worker1", "rm -rf /run/ledger; cat > /usr/local/lib/ledger_load.py", (HERE / "load.py").read_text())
    assert put.returncode == 0, put.stderr
    python = shell("worker1", "readlink -f /opt/celery/venv").stdout.strip()
    # A copy, because releases remove environments that are no longer used.
    shell("worker1", f"rm -rf /opt/ledger; cp -a {python} /opt/ledger")
    command = as_worker("/opt/ledger/bin/python /usr/local/lib/ledger_load.py send /run/ledger/notes 3000")
    sender = subprocess.Popen(["ssh", "-F", str(STATE / "ssh_config"), ADDRESSES["worker1"], f"sudo {command}"])
    assert wait_until(lambda: shell("worker1", "test -s /run/ledger/notes").returncode == 0, 60)
    phases = []
    yield phases
    shell("worker1", "touch /run/ledger/notes.stop")
    sender.wait(timeout=60)


@pytest.fixture
def phase(load, request):
    begun = time.time()
    yield
    load.append((request.node.name.removeprefix("test_"), begun, time.time()))


@pytest.mark.parametrize("playbook", ["site", "release"])
def test_more_connections_than_redis_allows_are_refused_before_anything_changes(playbook):
    done = release("-e", "redis_maxclients=50", playbook=playbook)
    assert done.returncode != 0
    assert "The 2 instances of 2 worker hosts may need 51 connections to Redis" in done.text, done.stdout
    assert "but it allows 50: raise redis_maxclients" in done.text
    assert not re.search(r"changed=[1-9]", done.text), done.stdout


def test_a_new_version_from_a_directory(phase):
    done = release("-e", version(2))
    assert done.returncode == 0, done.stdout
    assert [served(host) for host in ADDRESSES] == ["ledger 2", "ledger 2"]


def test_a_version_that_does_not_import_is_refused(phase):
    before = started("worker1")
    done = release("-e", version(3, ("import redis\n", "import redis_that_is_not_there\n")), "--limit", "worker1")
    assert done.returncode != 0
    assert "does not import: ModuleNotFoundError" in done.text, done.stdout
    assert started("worker1") == before


def test_a_version_without_a_task_that_is_queued_is_refused(phase):
    before = started("worker1")
    # A task that waits for its time is in the hands of a worker.
    sent = shell("worker1", "celery call ledger.closing --countdown=900")
    assert sent.returncode == 0, sent.stderr
    done = release("-e", version(4, ("ledger.closing", "ledger.closed")), "--limit", "worker1")
    assert done.returncode != 0
    assert "this version has no task 'ledger.closing', and queue 'celery' has 1 of its messages" in done.text, (
        done.stdout
    )
    assert started("worker1") == before


def test_a_version_whose_canary_fails_goes_back_and_stops_the_release(phase):
    hangs = (
        "\n\n@cache\n",
        "\n\nfrom celery.signals import worker_process_init\n\n\n@worker_process_init.connect\n"
        "def hang(**_):\n    time.sleep(3600)\n\n\n@cache\n",
    )
    before = started("worker1")
    done = release("-e", version(5, hangs), "-e", "worker_canary_timeout=15")
    assert done.returncode != 0
    # worker1 has beat, and is the last one.
    assert "default@worker2 has run no task" in done.text, done.stdout
    assert "worker1: not touched, worker2: failed, has what it had" in done.text, done.stdout
    assert started("worker1") == before
    assert [served(host) for host in ADDRESSES] == ["ledger 2", "ledger 2"]


def test_a_new_version_from_a_wheel_on_one_host(phase):
    done = release("-e", wheel(6), "--limit", "worker2")
    assert done.returncode == 0, done.stdout
    assert [served(host) for host in ADDRESSES] == ["ledger 2", "ledger 6"]


def test_the_release_before_comes_back_in_one_command(phase):
    before = started("worker1")
    done = release("-e", "release_rollback=true")
    assert done.returncode == 0, done.stdout
    assert [served(host) for host in ADDRESSES] == ["ledger 2", "ledger 2"]
    assert shell("worker2", "/opt/celery/venv/bin/pip list | grep ledger").stdout.split() == ["ledger", "2"]
    # What it goes back to is what this one has.
    assert started("worker1") == before


def test_changed_settings_restart_one_host_at_a_time(phase):
    def away(host):
        """Return when the workers of a host stopped and when they were back; the hosts share one clock."""
        properties = "--property=ActiveExitTimestampMonotonic --property=ActiveEnterTimestampMonotonic"
        shown = shell(host, f"systemctl show {UNIT} {properties}").stdout
        moments = dict(line.split("=") for line in shown.split())
        return int(moments["ActiveExitTimestampMonotonic"]), int(moments["ActiveEnterTimestampMonotonic"])

    for arguments in (("-e", "worker_log_level=DEBUG"), ()):
        before = {host: started(host) for host in ADDRESSES}
        done = release(*arguments, playbook="site")
        assert done.returncode == 0, done.stdout
        assert all(started(host) != before[host] for host in ADDRESSES)
        first, second = sorted(away(host) for host in ADDRESSES)
        assert first[0] < first[1] < second[0] < second[1]


@pytest.mark.parametrize("how", ["stop", "restart", "hanging pool", "reboot"])
def test_drain(phase, how):
    # Something to drain.
    assert wait_until(lambda: re.search("[1-9] tasks? running", status("worker2")), 60)
    before = started("worker2")
    if how == "reboot":
        shell("worker2", "systemctl reboot")
    elif how == "hanging pool":
        # Children that hear nothing: what they have goes back before systemd's patience ends and kills all.
        hang = f"pkill -STOP --parent $(systemctl show --value --property=MainPID {UNIT})"
        done = shell("worker2", f"{hang}; systemctl restart {UNIT}; journalctl --unit={UNIT} --since=-2min")
        assert "requeueing this worker's tasks" in done.stdout, done.stdout + done.stderr
    else:
        done = shell("worker2", f"systemctl {how} '{UNIT}' && systemctl start '{UNIT}'")
        assert done.returncode == 0, done.stderr
    assert wait_until(lambda: started("worker2") not in ("", before) and serves("worker2"), 120)


def test_shutdown_of_a_host(phase):
    tool = [sys.executable, str(ROOT / "tests" / "hosts" / "testhosts.py")]
    assert wait_until(lambda: re.search("[1-9] tasks? running", status("worker2")), 60)
    before = started("worker2")
    shell("worker2", "systemctl poweroff")
    # No worker answers, or a new one does: it has drained.
    assert wait_until(lambda: started("worker2") != before, 120)
    subprocess.run([*tool, "up", f"--inventory={INVENTORY}"], check=True, timeout=300)
    assert wait_until(lambda: started("worker2") not in ("", before) and serves("worker2"), 120)


def test_nothing_was_lost_and_work_never_stopped(load):
    shell("worker1", "touch /run/ledger/notes.stop")
    time.sleep(2)
    read = shell("worker1", as_worker("/opt/ledger/bin/python /usr/local/lib/ledger_load.py read /run/ledger/notes"))
    assert read.returncode == 0, read.stderr
    told = json.loads(read.stdout.splitlines()[-1])
    tasks, ticks = told["tasks"], sorted(told["ticks"])
    print(f"\ncounted: {'phase':<72} {'ended':>6} {'longest gap':>12} {'latest':>8}")
    worst = {"gap": 0.0, "late": 0.0}
    for name, begun, ended in load:
        there = [task for task in tasks if task["done"] and begun <= task["done"] <= ended]
        times = [begun, *sorted(task["done"] for task in there), ended]
        gap = max(after - before for before, after in pairwise(times))
        late = max((task["done"] - task["due"] for task in there), default=0.0)
        worst = {"gap": max(gap, worst["gap"]), "late": max(late, worst["late"])}
        print(f"counted: {name:<72} {len(there):>6} {gap:>10.1f} s {late:>6.1f} s")
    for kind in ("short", "long", "later"):
        these = [task for task in tasks if task["kind"] == kind]
        read_back = sum(task["state"] == "SUCCESS" for task in these)
        twice = sum(task["runs"] > 1 for task in these)
        print(
            f"counted: {kind}: {len(these)} sent, {read_back} results readable, {len(these) - read_back} lost, "
            f"{twice} ran twice"
        )
    close = sum(after - before < CLOSE for before, after in pairwise(ticks))
    versions, seconds = sorted({task["version"] for task in tasks}), ticks[-1] - ticks[0]
    print(f"counted: beat: {len(ticks)} ticks in {seconds:.0f} s, {close} closer than {CLOSE} s; versions {versions}")
    assert [task for task in tasks if task["state"] != "SUCCESS"] == []
    # Two beats would send two ticks a second.
    assert len(ticks) < seconds * 1.1 + 10
    assert worst["gap"] < GAP
    assert worst["late"] < LATE
    assert {"1", "2", "6"} <= set(versions)

"""Taking an instance, a host and the servers out again. The last file of this scenario: nothing is left afterwards."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from releasing import ADDRESSES, release, serves, shell, started, status

from stack import INVENTORY, STATE, wait_until

SERVER = yaml.safe_load(INVENTORY.read_text())["all"]["children"]["redis"]["hosts"]["server1"]["ansible_host"]
INSTANCES = [
    {"name": "default", "queues": ["celery"], "concurrency": 4},
    {"name": "slow", "queues": ["slow"], "concurrency": 1},
]
UNITS = "/etc/systemd/system/celery-*.service"
OURS = f"/etc/celery /opt/celery/venv /opt/celery/environments /usr/local/sbin/celery {UNITS}"


def on_server(script):
    """Run a script as root on the host of the servers."""
    quoted = "'" + script.replace("'", "'\\''") + "'"
    command = ["ssh", "-F", str(STATE / "ssh_config"), SERVER, f"sudo sh -c {quoted}"]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=300)


def remove(*arguments):
    """Run the remove playbook, as ops do."""
    return release(*arguments, playbook="remove")


def changes(done):
    """Return how many changes a run reports, for each host."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {host: int(count) for host, count in re.findall(r"(\S+)\s+: ok=\d+ +changed=(\d+)", done.stdout)}


def units(host):
    """Return the units of workers that a host runs or would start."""
    listed = shell(
        host,
        "systemctl list-units --all --plain --no-legend 'celery-*'; "
        "ls /etc/systemd/system/multi-user.target.wants /etc/systemd/system",
    )
    return set(re.findall(r"celery-(?:worker@\w*|beat)[.]service(?![.\w])", listed.stdout))


def remove_twice(*arguments):
    """Check, remove, and remove again: a check changes nothing, and so does the second run."""
    before = {host: units(host) for host in ADDRESSES}
    would = changes(remove("--check", *arguments))
    assert any(would.values()), would
    assert {host: units(host) for host in ADDRESSES} == before
    done = remove(*arguments)
    assert any(changes(done).values()), done.stdout
    again = remove(*arguments)
    assert set(changes(again).values()) == {0}, again.stdout
    return done


@pytest.fixture(scope="module", autouse=True)
def two_instances():
    done = release("-e", json.dumps({"worker_instances": INSTANCES}), playbook="site")
    assert done.returncode == 0, done.stdout
    assert {"celery-worker@default.service", "celery-worker@slow.service"} <= units("worker2")


def test_nothing_goes_without_a_limit_or_a_confirmation():
    done = remove("-e", "remove_workers=true")
    assert done.returncode == 2, done.stdout
    assert "confirm with -e remove_confirm=worker1,worker2" in done.text
    assert "celery-worker@default.service" in units("worker2")


def test_one_instance_goes_and_the_other_goes_on():
    shell("worker2", "mkdir -p /etc/systemd/system/celery-worker@slow.service.d")
    shell("worker2", "printf '[Service]\nNice=5\n' >/etc/systemd/system/celery-worker@slow.service.d/ours.conf")
    before = started("worker2")
    remove_twice("-e", "remove_instances=slow", "--limit", "worker2")
    assert "celery-worker@slow.service" not in units("worker2")
    assert shell("worker2", "test -e /etc/celery/worker@slow.env").returncode == 1
    assert shell("worker2", "find /var/backups/celeryops -name ours.conf").stdout != ""
    # Neither stopped nor restarted.
    assert started("worker2") == before
    assert serves("worker2")
    assert "celery-worker@slow.service" in units("worker1")
    again = remove("-e", "remove_instances=slow", "--limit", "worker2")
    assert "worker2 has no instance slow: removed before, or misspelt. It has default." in again.text


def test_a_host_whose_results_wait_is_refused_and_then_drained():
    def waiting():
        return "[1-9][0-9]* results? in the outbox"

    assert on_server("systemctl stop rabbitmq-server").returncode == 0
    sent = shell("worker2", "celery call ledger.closing")
    assert sent.returncode == 0, sent.stderr
    assert wait_until(lambda: any(re.search(waiting(), status(host)) for host in ADDRESSES), 120)
    (host,) = (host for host in ADDRESSES if re.search(waiting(), status(host)))
    done = remove("-e", "remove_workers=true", "--limit", host)
    assert done.returncode == 2, done.stdout
    assert "has results or dead letters that RabbitMQ does not have: /var/lib/celery/outbox.sqlite3: " in done.text
    assert "Nothing has been changed." in done.text
    assert serves(host)
    assert on_server("systemctl start rabbitmq-server").returncode == 0
    assert wait_until(lambda: not re.search(waiting(), status(host)), 120)


def test_a_worker_host_goes_and_its_data_stays():
    remove_twice("-e", "remove_workers=true", "--limit", "worker2")
    assert units("worker2") == set()
    assert shell("worker2", f"ls -d {OURS}").stdout == ""
    assert shell("worker2", "id -un celery; ls -d /var/lib/celery").stdout.split() == ["celery", "/var/lib/celery"]
    assert serves("worker1")


def test_everything_goes_and_the_data_of_the_servers_stays():
    what = ("-e", "remove_what=worker,rabbitmq,redis", "-e", "remove_confirm=server1,worker1,worker2")
    remove_twice(*what)
    assert units("worker1") == set()
    states = on_server(
        "systemctl is-active redis-server rabbitmq-server; systemctl is-enabled redis-server rabbitmq-server"
    )
    assert states.stdout.split() == ["inactive", "inactive", "disabled", "disabled"]
    assert on_server("find /etc/redis /etc/rabbitmq /etc/systemd/system -name '*celeryops*'").stdout == ""
    kept = on_server("ls -d /var/lib/redis/appendonlydir /var/lib/rabbitmq/mnesia/*@*").stdout
    assert "appendonlydir" in kept
    assert "@" in kept
    saved = on_server("cat /var/backups/celeryops/rabbitmq-definitions-*.json").stdout
    assert '"celery.results"' in saved


def test_the_data_goes_when_asked():
    what = ("-e", "remove_what=worker,rabbitmq,redis", "-e", "remove_confirm=server1,worker1,worker2")
    done = remove(*what, "-e", "remove_data=true")
    assert any(changes(done).values()), done.stdout
    assert on_server("ls -d /var/lib/redis/appendonlydir /var/lib/rabbitmq/mnesia/*@*").stdout == ""
    assert [shell(host, "ls -d /var/lib/celery").stdout for host in ADDRESSES] == ["", ""]
    assert set(changes(remove(*what, "-e", "remove_data=true")).values()) == {0}

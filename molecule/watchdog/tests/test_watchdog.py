"""What hangs is restarted by systemd; what waits for a server is not."""

from __future__ import annotations

import time

import pytest
import testinfra

from stack import INVENTORY, wait_until

# Of the inventory: worker_watchdog_timeout, and what systemd and the worker take on top.
WATCHDOG = 30
PATIENCE = 5 * WATCHDOG
UNITS = ("celery-worker@default", "celery-worker@slow", "celery-beat")


def machine(name):
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}")


@pytest.fixture(scope="module")
def worker():
    return machine("worker1")


@pytest.fixture(scope="module")
def servers():
    return machine("servers")


class Unit:
    """A unit of systemd."""

    def __init__(self, host, name):
        self.host = host
        self.name = name

    def show(self, name):
        return self.host.check_output(f"systemctl show --value --property={name} '{self.name}'")

    @property
    def restarts(self):
        return int(self.show("NRestarts"))

    @property
    def journal(self):
        return self.host.check_output(f"journalctl --no-pager --output=cat --lines=500 --unit='{self.name}'")

    def signal(self, name):
        self.host.check_output(f"systemctl kill --kill-whom=main --signal={name} '{self.name}'")

    def is_new(self, restarts):
        return self.restarts > restarts and self.show("ActiveState") == "active"


@pytest.fixture(scope="module")
def units(worker):
    return [Unit(worker, name) for name in UNITS]


@pytest.fixture(scope="module")
def answered(worker):
    """Send a task to each instance and return what came back."""

    def run():
        outcomes = []
        for queue in ("celery", "slow"):
            task = worker.check_output(f"celery call payments.add --args='[2, 3]' --queue={queue}").split()[-1]
            command = f"timeout 40 celery result {task}"
            outcomes.append(wait_until(lambda c=command: worker.run(c).stdout.strip(), 60))
        return outcomes

    return run


def test_active_means_that_it_consumes(units):
    default, slow, beat = units
    assert [unit.show("Type") for unit in units] == ["notify"] * 3
    assert "consuming; 0 tasks running; 0 results in the outbox" in default.show("StatusText")
    assert "consuming" in slow.show("StatusText")
    assert "periodic task" in beat.show("StatusText")
    assert [unit.restarts for unit in units] == [0, 0, 0]


def test_what_hangs_is_restarted(units, worker, answered):
    """At the same time: a stopped process, a pool that does not begin, a beat that does not tick."""
    default, slow, beat = units
    before = {unit.name: unit.restarts for unit in units}
    begun = time.monotonic()
    default.signal("STOP")
    beat.signal("STOP")
    worker.check_output(f"pkill -STOP --parent {slow.show('MainPID')}")
    worker.check_output("celery call payments.add --args='[2, 3]' --queue=slow")
    for unit in units:
        assert wait_until(lambda u=unit: u.is_new(before[u.name]), PATIENCE), f"{unit.name}\n{unit.journal}"
        assert "watchdog" in unit.journal
        print(f"\ncounted: {unit.name} hung, and was at work again after {time.monotonic() - begun:.0f} s at the most")
    assert "Stuck: the pool has not started a task" in slow.journal
    # The stacks of the threads.
    assert "Fatal Python error: Aborted" in slow.journal
    assert answered() == ["5", "5"]


def test_a_worker_that_waits_for_a_dead_connection_is_restarted(units, servers, answered):
    """Redis is there, and does not answer: without a limit on its sockets a worker would wait indefinitely."""
    default = units[0]
    before, begun = default.restarts, time.monotonic()
    redis = Unit(servers, "redis-server")
    redis.signal("STOP")
    try:
        assert wait_until(lambda: default.restarts > before, PATIENCE), default.journal
        # Not active as long as it does not consume.
        assert default.show("ActiveState") == "activating"
    finally:
        redis.signal("CONT")
    assert wait_until(lambda: default.show("ActiveState") == "active", PATIENCE), default.journal
    assert "Stuck: the consumer has not made progress" in default.journal
    took = time.monotonic() - begun
    print(f"\ncounted: Redis stood still; {default.name} was restarted, and at work again after {took:.0f} s")
    assert answered() == ["5", "5"]


def test_what_waits_for_a_server_is_left_alone(units, servers, worker, answered):
    wait_until(lambda: all(unit.show("ActiveState") == "active" for unit in units), PATIENCE)
    before = [unit.restarts for unit in units]
    servers.check_output("systemctl stop redis-server rabbitmq-server")
    try:
        end = time.monotonic() + 1.5 * WATCHDOG
        assert wait_until(lambda: "the broker is away" in units[0].show("StatusText"), 20)
        time.sleep(max(0.0, end - time.monotonic()))
        assert [unit.restarts for unit in units] == before
        assert [unit.show("ActiveState") for unit in units] == ["active"] * 3
        print(f"\ncounted: both servers were away for {1.5 * WATCHDOG:.0f} s; 0 of {len(units)} units were restarted")
    finally:
        servers.check_output("systemctl start redis-server rabbitmq-server")
    assert answered() == ["5", "5"]
    assert [unit.restarts for unit in units] == before

"""Every managed thing is broken by hand on live servers, seen in the report, and repaired by one run."""

from __future__ import annotations

import json

import pytest

from rows import ROWS

GROUPS = ("redis", "rabbitmq", "worker", "monitoring")
SERVICES = {
    "redis": ["redis-server"],
    "rabbitmq": ["rabbitmq-server"],
    "worker": ["celery-worker@default", "celery-worker@slow", "celery-beat"],
}


def matches(row, finding):
    return (
        row.what in finding["what"]
        and row.layer == finding["layer"]
        and row.declared in finding["declared"]
        and row.actual in finding["actual"]
    )


def unseen_and_unexplained(rows, hosts, report):
    """Return the rows that the report lacks, and its findings that no row explains."""
    unseen, explained = [], []
    for row in rows:
        findings = report["hosts"][hosts[row.group][0]]["differences"]
        seen = [finding for finding in findings if matches(row, finding)]
        unseen += [] if seen else [row.what]
        explained += seen
        explained += [finding for finding in findings for more in row.more if more in finding["what"]]
    every = [finding for host in report["hosts"].values() for finding in host["differences"]]
    return unseen, [finding for finding in every if finding not in explained]


def break_all(rows, break_by_hand):
    for group in GROUPS:
        if scripts := [row.breaks for row in rows if row.group == group]:
            break_by_hand(group, scripts)


def moments(root_shell):
    """Return the time of each host."""
    return {group: root_shell(group, "date +%s.%N").stdout.strip() for group in GROUPS}


def starts(root_shell, since):
    """Return how often each unit was started since these moments."""
    return {
        unit: int(
            root_shell(
                group, f"journalctl --output=cat --unit={unit} --since=@{since[group]} | grep -c '^Started ' || true"
            ).stdout
        )
        for group, units in SERVICES.items()
        for unit in units
    }


def invocations(root_shell):
    return {
        group: root_shell(group, f"systemctl show --property=InvocationID {' '.join(units)}").stdout
        for group, units in SERVICES.items()
    }


def assert_clean(look):
    code, output, report = look()
    assert code == 0, output[output.find("DRIFT REPORT") :]
    assert {host["state"] for host in report["hosts"].values()} == {"clean"}
    return report


def test_fresh_hosts_are_clean(look):
    report = assert_clean(look)
    print(f"a clean report over {len(report['hosts'])} hosts took {report['seconds']} s")


def test_every_break_is_seen_and_repaired_by_one_run_while_tasks_flow(
    break_by_hand, hosts, look, playbook, root_shell, secrets, stream
):
    rows = [row for row in ROWS if row.round == 1]
    break_all(rows, break_by_hand)

    code, output, report = look()
    assert code == 3, output[-3000:]
    unseen, unexplained = unseen_and_unexplained(rows, hosts, report)
    assert (unseen, unexplained) == ([], []), output[output.find("DRIFT REPORT") :]
    told = output + json.dumps(report)
    assert not [name for name, secret in secrets.items() if secret in told]
    table = output[output.find("DRIFT REPORT") :]
    # Long names are wrapped.
    assert all(row.what.split("/")[-1][:8] in table for row in rows), table

    since = moments(root_shell)
    code, output = playbook("site")
    assert code == 0, output[-5000:]
    assert starts(root_shell, since) == {unit: 1 for units in SERVICES.values() for unit in units}

    assert_clean(look)
    counted, complaints = stream.count()
    print(f"{counted['sent']} tasks flowed meanwhile")
    assert counted["sent"] > 20, complaints
    assert counted["missing"] == [], complaints

    # Nothing of what was in the way is lost.
    kept = root_shell("rabbitmq", "find /var/backups/celeryops -name 99-local.conf | xargs cat").stdout
    assert kept == "log.console = true\n"


def test_what_rabbitmq_cannot_change_is_drift_and_has_a_remedy(break_by_hand, look, playbook):
    other = """api PUT queues/celery/audit '{"durable": true, "arguments": {"x-max-length": 7}}'"""
    break_by_hand("rabbitmq", ["api DELETE queues/celery/audit", other])
    code, output, report = look("--limit", "rabbitmq")
    assert code == 3, output[-3000:]
    assert list(report["hosts"]) == ["results1"]
    (finding,) = report["hosts"]["results1"]["differences"]
    assert finding["what"] == "queues celery/audit"
    assert "x-max-length=7" in finding["actual"]
    assert "x-max-length=100" in finding["declared"]
    assert finding["note"]
    code, output = playbook("site", "--tags", "rabbitmq")
    assert code == 2
    assert "rabbitmq_recreate" in " ".join(output.split())
    break_by_hand("rabbitmq", ["api DELETE queues/celery/audit"])
    code, output = playbook("site", "--tags", "rabbitmq", "--limit", "rabbitmq")
    assert code == 0, output[-3000:]


def test_two_runs_side_by_side(look, root_shell, start):
    before = invocations(root_shell)
    runs = [start("site"), start("site")]
    outputs = [run.communicate(timeout=900)[0] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], outputs
    refused = next(output for run, output in zip(runs, outputs, strict=True) if run.returncode == 2)
    assert "Another run is working on" in " ".join(refused.split())
    # Nothing differed, so nothing was restarted.
    assert invocations(root_shell) == before
    # What one run has left behind does not keep the next away.
    assert start("site", "--tags", "preflight").wait(timeout=300) == 0


def test_changes_that_need_a_restart_cause_exactly_one(look, playbook, root_shell):
    def restarts(**variables):
        since = moments(root_shell)
        code, output = playbook("site", "--tags", "redis,rabbitmq", "-e", json.dumps(variables))
        assert code == 0, output[-5000:]
        counted = starts(root_shell, since)
        return counted["redis-server"], counted["rabbitmq-server"]

    live = {
        "redis_config": {"hz": 20},
        "redis_maxclients": 5000,
        "redis_celery_commands": ["hgetall"],
        "rabbitmq_dead_letters_max_length": 5000,
        # With what the monitoring needs: its settings, of the file, would go with the plugin.
        "rabbitmq_plugins": ["rabbitmq_management", "rabbitmq_prometheus", "rabbitmq_top"],
    }
    assert restarts(**live) == (0, 0)
    # Several at once, of files and of units.
    redis = {"redis_config": {"hz": 20, "databases": 17, "tcp-backlog": 100}, "redis_nofile_limit": 6000}
    config = {"heartbeat": 50, "tcp_listen_options.backlog": 100}
    rabbitmq = {"rabbitmq_config": config, "rabbitmq_nofile_limit": 6000}
    assert restarts(**{**live, **redis, **rabbitmq}) == (1, 1)
    assert restarts() == (1, 1)
    assert_clean(look)


@pytest.mark.parametrize(
    ("group", "variables", "stray", "task", "unit"),
    [
        ("redis", {}, "/etc/systemd/system/redis-server.service.d/stray.conf", "Move aside", "redis-server"),
        ("rabbitmq", {"rabbitmq_config": {"heartbeat": 50}}, None, "Write the configuration", "rabbitmq-server"),
        ("worker", {"worker_log_level": "DEBUG"}, None, "Write the settings", "celery-worker@default"),
    ],
)
def test_a_run_that_ends_before_the_restart_is_made_good_by_the_next(
    group, variables, stray, task, unit, hosts, look, playbook, root_shell, start
):
    if stray:
        root_shell(group, f"printf '[Service]\\nNice=5\\n' >{stray} && systemctl daemon-reload")
    arguments = ("--tags", group, "--limit", group, "-e", json.dumps(variables))
    since = moments(root_shell)
    run = start("site", *arguments)
    lines = iter(run.stdout)
    assert any(f": {task}" in line for line in lines), run.wait(timeout=60)
    assert next(line for line in lines if hosts[group][0] in line).startswith("changed:")
    run.kill()
    run.wait(timeout=60)
    assert starts(root_shell, since)[unit] == 0

    code, output, report = look(*arguments)
    assert code == 3, output[-3000:]
    findings = [finding for host in report["hosts"].values() for finding in host["differences"]]
    waiting = [finding for finding in findings if "a run ended before the restart" in finding["actual"]]
    assert waiting, findings
    # Of what was moved away systemd knows as well, and RabbitMQ shows what it still runs with.
    running = [f"setting {name}" for name in variables.get("rabbitmq_config", {})]
    assert stray or [finding["what"] for finding in findings if finding not in waiting] == running, findings
    code, output = playbook("site", *arguments)
    assert code == 0, output[-5000:]
    assert starts(root_shell, since)[unit] == 1
    assert look(*arguments)[0] == 0
    code, output = playbook("site", *arguments[:-2])
    assert code == 0, output[-5000:]


@pytest.mark.parametrize("number", sorted({row.round for row in ROWS} - {1}))
def test_what_hides_others_is_seen_and_repaired(number, break_by_hand, hosts, look, playbook):
    rows = [row for row in ROWS if row.round == number]
    break_all(rows, break_by_hand)
    code, output, report = look()
    assert code == 3, output[-3000:]
    unseen, unexplained = unseen_and_unexplained(rows, hosts, report)
    assert (unseen, unexplained) == ([], []), output[output.find("DRIFT REPORT") :]
    # That nothing else is left the next round sees, or the last test.
    code, output = playbook("site")
    assert code == 0, output[-5000:]


def test_unreachable_host_makes_the_report_not_clean(look):
    code, output, report = look("-e", "ansible_ssh_timeout=3", "--limit", "redis,worker", "-e", '{"ansible_port": 9}')
    assert code == 4, output[-2000:]
    assert {host["state"] for host in report["hosts"].values()} == {"blind"}
    assert "Could not look" in output


# Stands in for ansible-playbook on a control node: what is tried is that the units run it, and show how it ended.
STAND_IN = """#!/bin/sh
echo "$@" >>/var/lib/celeryops-drift/told
exit 3
"""


def test_schedule(playbook, root_shell):
    assert root_shell("redis", "cat >/usr/local/bin/play; chmod 0755 /usr/local/bin/play", STAND_IN).returncode == 0
    on_broker = ("-e", "drift_schedule_host=broker1")
    code, output = playbook(
        "drift_schedule",
        *on_broker,
        *("-e", "drift_schedule_inventory=/srv/inventory.yml", "-e", "drift_schedule_user=ops"),
        *("-e", "drift_schedule_ansible_playbook=/usr/local/bin/play"),
    )
    assert code == 0, output
    units = "/etc/systemd/system/celeryops-drift.service /etc/systemd/system/celeryops-drift.timer"
    verified = root_shell("redis", f"systemd-analyze verify {units}")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert root_shell("redis", "systemctl is-active celeryops-drift.timer").stdout == "active\n"
    assert root_shell("redis", "systemctl start celeryops-drift.service").returncode != 0
    shown = root_shell("redis", "systemctl show --property=Result,ExecMainStatus celeryops-drift").stdout
    assert set(shown.split()) == {"Result=exit-code", "ExecMainStatus=3"}
    assert root_shell("redis", "cat /var/lib/celeryops-drift/told").stdout == (
        "-i /srv/inventory.yml celeryops.hybrid.drift -e drift_report_json=/var/lib/celeryops-drift/report.json\n"
    )
    code, output = playbook("drift_schedule", *on_broker, "-e", "drift_schedule_state=absent")
    assert code == 0, output
    assert root_shell("redis", f"ls {units} 2>/dev/null").stdout == ""


def test_tags(look, root_shell):
    root_shell("redis", "chmod 0600 /etc/redis/celeryops.conf")
    try:
        code, _, report = look("--tags", "worker")
        assert code == 0, report
        code, _, report = look("--tags", "redis")
        assert code == 3
        assert [finding["what"] for finding in report["hosts"]["broker1"]["differences"]] == [
            "/etc/redis/celeryops.conf"
        ]
    finally:
        root_shell("redis", "chmod 0640 /etc/redis/celeryops.conf")

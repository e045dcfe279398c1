"""Every managed thing is broken by hand on live servers, seen in the report, and repaired by one run."""

from __future__ import annotations

import json

import pytest

from rows import ROWS

GROUPS = ("redis", "rabbitmq", "worker")
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


def starts(root_shell, since):
    """Return how often each unit was started since a moment."""
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
    assert all(row.what.split("/")[-1][:20] in table for row in rows), table

    since = {group: root_shell(group, "date +%s.%N").stdout.strip() for group in GROUPS}
    code, output = playbook("site", "-e", "rabbitmq_recreate=empty")
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


@pytest.mark.parametrize("number", sorted({row.round for row in ROWS} - {1}))
def test_what_hides_others_is_seen_and_repaired(number, break_by_hand, hosts, look, playbook):
    rows = [row for row in ROWS if row.round == number]
    break_all(rows, break_by_hand)
    code, output, report = look()
    assert code == 3, output[-3000:]
    unseen, unexplained = unseen_and_unexplained(rows, hosts, report)
    assert (unseen, unexplained) == ([], []), output[output.find("DRIFT REPORT") :]
    code, output = playbook("site")
    assert code == 0, output[-5000:]
    assert_clean(look)


def test_unreachable_host_is_no_clean_report(look):
    code, output, report = look("-e", "ansible_ssh_timeout=3", "--limit", "redis,worker", "-e", '{"ansible_port": 9}')
    assert code == 4, output[-2000:]
    assert {host["state"] for host in report["hosts"].values()} == {"blind"}
    assert "Could not look" in output


def test_tags_and_limit(look, root_shell):
    root_shell("redis", "chmod 0600 /etc/redis/celeryops.conf")
    try:
        _, _, report = look("--limit", "rabbitmq")
        assert list(report["hosts"]) == ["results1"]
        code, _, report = look("--tags", "worker")
        assert code == 0, report
        code, _, report = look("--tags", "redis")
        assert code == 3
        assert [finding["what"] for finding in report["hosts"]["broker1"]["differences"]] == [
            "/etc/redis/celeryops.conf"
        ]
    finally:
        root_shell("redis", "chmod 0640 /etc/redis/celeryops.conf")

"""The Celery workers under systemd."""

from __future__ import annotations

import re

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://worker"]
UNITS = ["celery-worker@default", "celery-worker@slow", "celery-beat"]


@pytest.mark.parametrize("unit", UNITS)
def test_service_is_enabled_and_runs(host, unit):
    service = host.service(unit)
    assert service.is_enabled
    assert wait_until(lambda: service.is_running), host.run(f"journalctl -u {unit} -n 30").stdout


@pytest.mark.parametrize("unit", UNITS)
def test_service_does_not_restart_again_and_again(host, unit):
    assert host.check_output(f"systemctl show {unit} --property=NRestarts --value") == "0"


@pytest.mark.parametrize(
    ("path", "user", "group", "mode"),
    [
        ("/etc/celery/celery.env", "root", "root", 0o600),
        ("/etc/celery/celeryconfig.py", "root", "celery", 0o640),
        ("/opt/celery/venv/bin/celery", "root", "root", 0o755),
    ],
)
def test_owner_and_mode(host, path, user, group, mode):
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (user, group, mode)


def test_the_user_of_the_workers_cannot_change_what_it_runs(host):
    assert host.run("find /opt/celery /etc/celery -user celery -o -perm /o+w -not -type l | head").stdout == ""


def test_one_variable_says_where_results_go(host):
    assert host.check_output("grep -rlE 'amqps?://' /etc/celery /etc/systemd/system").split() == [
        "/etc/celery/celery.env"
    ]
    assert host.check_output("grep -c ^CELERY_RESULT_BACKEND=.*amqps:// /etc/celery/celery.env") == "1"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("KillMode", "mixed"),
        ("KillSignal", "15"),
        ("Restart", "always"),
        ("NoNewPrivileges", "yes"),
        ("TasksMax", "2048"),
        ("User", "celery"),
    ],
)
@pytest.mark.parametrize("unit", UNITS[:2])
def test_unit(host, unit, setting, value):
    assert host.check_output(f"systemctl show {unit} --property={setting} --value") == value


@pytest.mark.parametrize("unit", ["celery-worker@default", "celery-beat"])
def test_sandbox_leaves_little_to_break(host, unit):
    """With the example application at work: the canaries of 'verify' and the other tests run in this very sandbox."""
    told = host.check_output(f"systemd-analyze security --no-pager {unit}.service")
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", told)[1])
    assert exposure <= 2.0, told

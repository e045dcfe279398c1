"""How the playbook site goes through the hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

SITE = Path(__file__).resolve().parents[3] / "playbooks" / "site.yml"
PLAYS = {play["name"]: play for play in yaml.safe_load(SITE.read_text())}


@pytest.mark.parametrize(
    ("play", "serial"),
    [
        ("Broker", "{{ redis_serial | default(1) }}"),
        ("Result store", "{{ rabbitmq_serial | default(1) }}"),
        ("Workers", "{{ worker_serial | default('50%') }}"),
    ],
)
def test_hosts_are_never_restarted_all_at_once(play, serial):
    assert PLAYS[play]["serial"] == serial

"""How the site playbook goes through the hosts."""

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


@pytest.mark.parametrize("play", PLAYS)
def test_every_play_is_linear_whatever_the_configuration_says(play):
    assert PLAYS[play]["strategy"] == "ansible.builtin.linear"


def test_an_older_core_than_the_collection_requires_is_refused_first():
    required = yaml.safe_load((SITE.parents[1] / "meta" / "runtime.yml").read_text())["requires_ansible"]
    first = next(iter(PLAYS.values()))["tasks"][0]["ansible.builtin.assert"]
    assert required == ">=2.19.8"
    assert first["that"] == "ansible_version.full is version('2.19.8', '>=')"

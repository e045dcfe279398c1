"""Modules that run the tools of RabbitMQ on the host: what rabbitmqctl changes, feature flags and plugins."""

from __future__ import annotations

import shlex

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.modules import (
    rabbitmq_feature_flag,
    rabbitmq_plugin,
    rabbitmq_runtime,
)


@pytest.fixture
def commands(host, monkeypatch):
    """Run the commands of modules on the host."""

    def run(_module, command, **_):
        done = host.shell(shlex.join(command), check=False)
        return done.returncode, done.stdout, done.stderr

    monkeypatch.setattr(AnsibleModule, "run_command", run)


DECLARED = {
    "disk_free_limit": "512MiB",
    "log_level": "info",
    "settings": {"heartbeat": 60},
    "untraced_vhosts": ["celery"],
}


BY_HAND = "set_log_level debug", "trace_on -p celery", "set_disk_free_limit 1GB"


@pytest.fixture
def running(host):
    """Put back what the host runs with."""
    limit = host.shell("rabbitmqctl -q eval 'rabbit_disk_monitor:get_disk_free_limit().'").stdout.strip()
    yield
    host.shell(f"rabbitmqctl -q set_disk_free_limit {limit}")


@pytest.mark.usefixtures("commands", "running")
def test_what_rabbitmqctl_has_changed_is_seen_and_brought_back_once(host, module):
    host.shell("; ".join(f"rabbitmqctl -q {command}" for command in BY_HAND))
    looked = module(rabbitmq_runtime, check=True, **DECLARED)
    assert [item["name"] for item in looked["differences"]] == [
        "disk_free_limit",
        "log_level",
        "tracing of vhost celery",
    ]
    assert module(rabbitmq_runtime, **DECLARED)["differences"] == looked["differences"]
    assert not module(rabbitmq_runtime, **DECLARED)["changed"]


@pytest.mark.usefixtures("commands")
def test_all_stable_feature_flags_are_enabled_and_an_unknown_one_is_refused(module):
    module(rabbitmq_feature_flag, all_stable=True)
    assert not module(rabbitmq_feature_flag, all_stable=True)["changed"]
    assert not module(rabbitmq_feature_flag, names=["stream_queue"])["changed"]
    assert "has no feature flag no_such_flag" in module(rabbitmq_feature_flag, names=["no_such_flag"])["msg"]


@pytest.mark.usefixtures("commands")
def test_plugin_is_enabled_and_disabled_once(module):
    wanted = {"names": ["rabbitmq_shovel"]}
    assert module(rabbitmq_plugin, check=True, **wanted)["enabled"] == ["rabbitmq_shovel"]
    assert module(rabbitmq_plugin, **wanted)["changed"]
    assert not module(rabbitmq_plugin, **wanted)["changed"]
    pruned = module(rabbitmq_plugin, names=["rabbitmq_management"], prune=True)
    assert (pruned["enabled"], pruned["disabled"]) == ([], ["rabbitmq_shovel"])
    assert not module(rabbitmq_plugin, **wanted, state="disabled")["changed"]
    assert "no_such_plugin" in module(rabbitmq_plugin, names=["no_such_plugin"])["msg"]

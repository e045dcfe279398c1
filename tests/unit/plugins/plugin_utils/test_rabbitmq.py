"""The configuration file of RabbitMQ, and the guard over the number of streams."""

from __future__ import annotations

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._rabbitmq import partitions_problem, render_config


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("heartbeat", 60, "heartbeat = 60\n"),
        ("tcp_listen_options.nodelay", True, "tcp_listen_options.nodelay = true\n"),
        ("tcp_listen_options.nodelay", False, "tcp_listen_options.nodelay = false\n"),
        (
            "listeners.tcp",
            ["127.0.0.1:5672", "::1:5672"],
            "listeners.tcp.1 = 127.0.0.1:5672\nlisteners.tcp.2 = ::1:5672\n",
        ),
        ("loopback_users", {"guest": True}, "loopback_users.guest = true\n"),
    ],
)
def test_values_stand_as_rabbitmq_reads_them(name, value, line):
    assert render_config([{"name": name, "value": value}]) == line


def test_the_reason_stands_above_the_setting():
    assert render_config([{"name": "a", "value": 1}, {"name": "b", "value": 2, "why": "Because\nof that."}]) == (
        "a = 1\n\n# Because\n# of that.\nb = 2\n"
    )


@pytest.mark.parametrize(("name", "value"), [("a b", 1), ("a\n", 1), ("a", "x\ny"), ("a", ""), ("a", [" "])])
def test_what_would_break_the_file_is_refused(name, value):
    with pytest.raises(ValueError, match=r"not a key of rabbitmq\.conf|empty or contains"):
        render_config([{"name": name, "value": value}])


def holding(*streams, recorded=None, vhost="celery"):
    parameters = [] if recorded is None else [{"name": f"celery.results.partitions.{vhost}", "value": recorded}]
    return {
        "queues": [{"vhost": vhost, "name": f"celery.results.{n}"} for n in streams]
        + [{"vhost": vhost, "name": "celery.dead_letters"}],
        "global_parameters": parameters,
    }


@pytest.mark.parametrize(
    "definitions",
    [
        {},
        holding(),
        holding(recorded=8),
        holding(*range(16)),
        holding(*range(16), recorded=16),
        # A deleted stream is repaired, also the last one, because the number is on record.
        holding(0, 1, recorded=16),
        holding(*range(15), recorded=16),
        # Another vhost has its own number.
        holding(*range(4), vhost="other", recorded=4),
    ],
)
def test_the_same_number_is_taken(definitions):
    assert partitions_problem(definitions, "celery", 16) == ""


@pytest.mark.parametrize(
    ("definitions", "present"),
    [(holding(*range(8)), 8), (holding(*range(32)), 32), (holding(0, recorded=8), 8), (holding(3), 4)],
)
def test_another_number_is_refused(definitions, present):
    assert partitions_problem(definitions, "celery", "16") == (
        f"holds {present} archive streams in vhost celery, declared are 16"
    )

"""Connections: what the workers may need follows from the inventory, and is compared with what the servers allow."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._budget import (
    connection_need,
    connection_problems,
    instance_need,
    rabbitmq_allows,
    redis_allows,
)

REDIS = {"maxclients": 10000, "nofile": 65535}
RABBITMQ = {"nofile": 65536, "connection_max": ""}


def hosts(number: int, **instance: Any) -> dict[str, dict[str, Any]]:
    return {f"worker{n}": {"instances": [{"name": "default", **instance}], "concurrency": 4} for n in range(number)}


def test_each_child_of_prefork_has_connections_of_its_own() -> None:
    small, large = (instance_need({"concurrency": n}, 1, 10) for n in (1, 5))
    assert large[0] - small[0] == 12
    assert large[1] - small[1] == 8


def test_threads_share_what_their_process_has() -> None:
    assert instance_need({"pool": "gevent", "concurrency": 500}, 1, 20) == instance_need(
        {"pool": "threads", "concurrency": 20}, 1, 20
    )


def test_one_more_host_is_one_more_share() -> None:
    needs = [connection_need(hosts(number))["redis"] for number in (1, 2, 3)]
    assert needs[2] - needs[1] == needs[1] - needs[0] > 0


def test_processors_count_where_no_concurrency_is_declared() -> None:
    assert connection_need(hosts(1)) == connection_need(hosts(1, concurrency=4))


def test_redis_takes_no_more_than_its_descriptors() -> None:
    assert redis_allows(10000, 1024) == 992


# 'Sockets' of 'rabbitmqctl status' on 3.10, at two limits.
@pytest.mark.parametrize(("nofile", "sockets"), [(20000, 17908), (65536, 58890)])
def test_rabbitmq_keeps_descriptors_for_files(nofile: int, sockets: int) -> None:
    assert rabbitmq_allows(nofile) == sockets
    assert rabbitmq_allows(nofile, 500) == 500
    assert rabbitmq_allows(nofile, "infinity") == sockets


def test_an_ordinary_deployment_is_fine() -> None:
    assert connection_problems(hosts(20), REDIS, RABBITMQ, 200) == []


def test_what_redis_refuses_gives_a_reason() -> None:
    (problem,) = connection_problems(hosts(2), {"maxclients": 50, "nofile": 65535}, RABBITMQ, 10)
    for word in (
        "2 instances of 2 worker hosts",
        "51 connections to Redis",
        "else 10",
        "allows 50",
        "redis_maxclients",
    ):
        assert word in problem


def test_what_rabbitmq_refuses_gives_a_reason() -> None:
    (problem,) = connection_problems(hosts(2), REDIS, {"nofile": 65536, "connection_max": 20}, 10)
    assert "RabbitMQ" in problem
    assert "connection_max" in problem


def test_servers_that_others_look_after_are_theirs_to_count() -> None:
    assert connection_problems(hosts(1000), {}, {}, 200) == []


def test_the_verifier_counts_in_the_same_way() -> None:
    from celery_hybrid.verify import workers

    children = 5
    counted = tuple(main + children * child for main, child in zip(workers._MAIN, workers._CHILD, strict=True))
    assert counted == instance_need({"concurrency": children}, 1, 10)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a deployment may need, and whether both servers allow so many.

The numbers are upper bounds, over what was measured with Celery 5.7, kombu 5.7 and celery-hybrid: an idle instance
holds 9 connections to Redis and 1 to RabbitMQ; after tasks, chains and chords 2 more for each child, and 1 to RabbitMQ.
"""

from __future__ import annotations

import typing as t

# Of the main process: consuming, remote control, events, restoring; parts of chords, writing, reading, outbox.
REDIS_MAIN, RABBITMQ_MAIN = 12, 4
# Of a child: sending tasks and a client of the application's own; writing and reading results.
REDIS_CHILD, RABBITMQ_CHILD = 3, 2
# Of beat, which sends, and does not read.
REDIS_BEAT, RABBITMQ_BEAT = 3, 1
# What Redis needs for files and itself, of its descriptors.
REDIS_OWN_DESCRIPTORS = 32


def instance_need(instance: dict[str, t.Any], concurrency: int, pool_limit: int) -> tuple[int, int]:
    """Return the connections to Redis and to RabbitMQ that an instance may need.

    Args:
        instance: one of ``worker_instances``.
        concurrency: for an instance that declares none.
        pool_limit: connections to the broker that a process keeps for sending.
    """
    tasks = int(instance.get("concurrency") or concurrency)
    pool = instance.get("pool", "prefork")
    if pool == "prefork":
        return REDIS_MAIN + tasks * REDIS_CHILD, RABBITMQ_MAIN + tasks * RABBITMQ_CHILD
    # Threads share the pool of their process, and its connections to RabbitMQ.
    return REDIS_MAIN + min(tasks, pool_limit) * REDIS_CHILD, RABBITMQ_MAIN


def connection_need(hosts: dict[str, dict[str, t.Any]]) -> dict[str, int]:
    """Return the connections that all workers of a deployment may need, by server.

    Args:
        hosts: ``instances``, ``concurrency`` (of instances that declare none) and ``pool_limit`` of each host; without
            ``pool_limit`` it is what the role computes.
    """
    need = {"redis": REDIS_BEAT, "rabbitmq": RABBITMQ_BEAT}
    for host in hosts.values():
        instances = host["instances"]
        default = int(host.get("concurrency") or 1)
        largest = max((int(instance.get("concurrency") or default) for instance in instances), default=1)
        for instance in instances:
            redis, rabbitmq = instance_need(instance, default, int(host.get("pool_limit") or largest + 4))
            need["redis"] += redis
            need["rabbitmq"] += rabbitmq
    return need


def redis_allows(maxclients: int, nofile: int) -> int:
    """Return how many clients Redis takes: it lowers its limit to the descriptors that it gets."""
    return min(maxclients, max(1, nofile - REDIS_OWN_DESCRIPTORS))


def rabbitmq_allows(nofile: int, connection_max: t.Any = None) -> int:
    """Return how many connections RabbitMQ takes: nine tenths of its descriptors, as 3.10 counts, or what is set."""
    sockets = int(max(1, nofile - 100) * 0.9) - 2
    return sockets if connection_max in (None, "", "infinity") else min(sockets, int(connection_max))


def connection_problems(
    hosts: dict[str, dict[str, t.Any]],
    redis: dict[str, t.Any] | None,
    rabbitmq: dict[str, t.Any] | None,
    others: int = 0,
) -> list[str]:
    """Return a sentence for each server that does not allow what the deployment may need.

    Args:
        hosts: as for :func:`connection_need`.
        redis: ``maxclients`` and ``nofile``; nothing for a server that others look after.
        rabbitmq: ``nofile`` and ``connection_max``; nothing for a server that others look after.
        others: connections to each server that everything else needs.
    """
    need = connection_need(hosts)
    instances = sum(len(host["instances"]) for host in hosts.values())
    checks = []
    if redis:
        allowed = redis_allows(int(redis["maxclients"]), int(redis["nofile"]))
        checks.append(("Redis", need["redis"], allowed, "redis_maxclients (and redis_nofile_limit)"))
    if rabbitmq:
        allowed = rabbitmq_allows(int(rabbitmq["nofile"]), rabbitmq.get("connection_max"))
        checks.append(("RabbitMQ", need["rabbitmq"], allowed, "rabbitmq_nofile_limit (or connection_max)"))
    return [
        f"The {instances} instances of {len(hosts)} worker hosts may need {needed} connections to {server}, and "
        f"everything else {others} (worker_other_connections), but it allows {allowed}: raise {variable}, or lower "
        "concurrency in worker_instances. Nothing has changed."
        for server, needed, allowed, variable in checks
        if needed + others > allowed
    ]

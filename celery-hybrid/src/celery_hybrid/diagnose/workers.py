"""What live workers answer through Celery's remote control."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery_hybrid.verify.workers import Workers

#: What each node is asked. Of tasks only what tells people which they are is kept: arguments are the application's.
COMMANDS = (
    "stats",
    "active",
    "reserved",
    "scheduled",
    "active_queues",
    "registered",
    "conf",
    "result_store",
    "pools",
)
_TASK = ("id", "name", "time_start", "worker_pid", "acknowledged")
_MOST_TASKS = 500


def read(app: Any, nodes: Sequence[str], others: Sequence[str], timeout: float) -> dict[str, Any]:
    """Ask all nodes whether they live, and *nodes* and undeclared ones for everything.

    Args:
        app: whose broker is used.
        nodes: declared here.
        others: declared elsewhere.
        timeout: seconds for each question.
    """
    workers = Workers(app, nodes, timeout)
    started = time.monotonic()
    heard = sorted(workers.ask("ping", None, min(1.0, timeout)))
    missing = sorted({*nodes} - {*heard})
    if missing:
        # A busy event loop gets a second chance, with more time.
        heard = sorted({*heard, *workers.ask("ping", missing, timeout)})
    asked = [node for node in heard if node not in others]
    answers: dict[str, dict[str, Any]] = {node: {} for node in asked}
    for command in COMMANDS:
        if not asked:
            break
        arguments = {"with_defaults": True} if command == "conf" else {}
        for node, reply in workers.ask(command, asked, timeout, **arguments).items():
            if node in answers:
                answers[node][command] = _kept(command, reply)
        # One that has stopped answering must not use up everybody's time.
        asked = [node for node in asked if command in answers[node]]
    return {
        "heard": heard,
        "nodes": answers,
        "silent": sorted({*nodes} - {*heard}),
        "refused": workers.refused,
        "seconds": round(time.monotonic() - started, 2),
    }


def _kept(command: str, reply: Any) -> Any:
    if command == "scheduled" and isinstance(reply, list):
        return [{**_task(item.get("request") or {}), "eta": item.get("eta")} for item in reply[:_MOST_TASKS]]
    if command in ("active", "reserved") and isinstance(reply, list):
        return [_task(item) for item in reply[:_MOST_TASKS]]
    if command == "active_queues" and isinstance(reply, list):
        return [str(queue.get("name")) for queue in reply]
    return reply


def _task(info: Mapping[str, Any]) -> dict[str, Any]:
    delivery = info.get("delivery_info") or {}
    return {
        **{name: info.get(name) for name in _TASK},
        "queue": delivery.get("routing_key"),
        "redelivered": bool(delivery.get("redelivered")),
    }

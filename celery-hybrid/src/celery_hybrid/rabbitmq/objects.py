"""What must exist in RabbitMQ, as ``topology.json`` says it.

The file is the only place for names, arguments, policies and rights: the ``rabbitmq`` role, :mod:`declare and check
<celery_hybrid.rabbitmq.topology>`, ``celery_verify`` and the documentation read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from celery_hybrid.names import JOURNAL_QUEUE

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

#: The file as it stands.
DECLARED: dict[str, Any] = json.loads(resources.files(__package__).joinpath("topology.json").read_text("utf-8"))

#: Seconds that the journal keeps a record.
JOURNAL_SECONDS: int = next(
    policy["definition"]["message-ttl"] // 1000
    for policy in DECLARED["objects"]["policies"]
    if policy["name"] == JOURNAL_QUEUE
)

#: Names of queues that earlier versions used.
FORMER_QUEUES = frozenset(each["name"] for each in DECLARED["former"] if each["kind"] == "queue")


def default(value: str) -> Any:
    """Return what a value is when nobody sets it; the role's variable of it has the same default."""
    return DECLARED["values"][value]["default"]


def objects(**values: Any) -> dict[str, list[dict[str, Any]]]:
    """Return all objects by their kind, with values in the place of their names.

    Args:
        values: those that are not the default. What would contain a value that is None is left out.
    """
    known = {name: default(name) for name in DECLARED["values"]} | values
    return {
        kind: [_filled(each, one) for each in declared for one in _numbered(each, known)]
        for kind, declared in DECLARED["objects"].items()
    }


def arguments(queue: Mapping[str, Any], policies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of a queue that is declared without policies: its own, and what they would say.

    Args:
        queue: one of :func:`objects`.
        policies: those of :func:`objects`.
    """
    found = {"x-queue-type": queue["type"], **queue.get("arguments", {})}
    for policy in policies:
        if re.search(policy["pattern"], queue["name"]):
            found |= {f"x-{name}": value for name, value in policy["definition"].items()}
    return found


def _numbered(declared: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    name = declared.get("each")
    if name is None:
        yield values
    else:
        for number in range(values[f"{name}s"]):
            yield {**values, name: number}


def _filled(declared: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(declared, dict):
        filled = {name: _filled(value, values) for name, value in declared.items()}
        return {name: value for name, value in filled.items() if value is not None}
    if isinstance(declared, list):
        return [_filled(value, values) for value in declared]
    if not isinstance(declared, str):
        return declared
    if whole := _PLACEHOLDER.fullmatch(declared):
        return values[whole[1]]
    if any(values[name] is None for name in _PLACEHOLDER.findall(declared)):
        return None
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), declared)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file of a RabbitMQ node, and the number of its archive streams."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_topology import PARTITIONS_PARAMETER

_STREAM = re.compile(r"celery\.results\.(\d+)")
_KEY = re.compile(r"[A-Za-z0-9_.$-]+")


def _value(name: str, value: t.Any) -> str:
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if not _KEY.fullmatch(name):
        raise ValueError(f"{name!r} is not a key of rabbitmq.conf")
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise ValueError(f"the value of {name} is empty or contains a line break")
    return f"{name} = {text}"


def render_config(settings: t.Iterable[t.Mapping[str, t.Any]]) -> str:
    """Return the lines of a rabbitmq.conf, each setting below the comment that gives its reason.

    A list becomes numbered keys (``listeners.tcp.1``), a dictionary a key for each of its own.
    """
    lines: list[str] = []
    for setting in settings:
        name, value = str(setting["name"]), setting["value"]
        if setting.get("why"):
            lines += ["", *(f"# {line}".rstrip() for line in str(setting["why"]).strip().splitlines())]
        if isinstance(value, t.Mapping):
            lines += [_value(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            lines += [_value(f"{name}.{number}", item) for number, item in enumerate(value, 1)]
        else:
            lines.append(_value(name, value))
    return "\n".join(lines).lstrip("\n") + "\n"


def partitions_problem(definitions: t.Mapping[str, t.Any], vhost: str, partitions: t.Any) -> str:
    """Return why the number of archive streams cannot become *partitions*, or an empty string.

    The partition of a task id is a checksum modulo this number, so that with another one results are looked for in
    the wrong stream. The number is kept in a global parameter, so that a deleted stream is not taken for a change.
    """
    count = int(partitions)
    numbers = {
        int(match.group(1))
        for queue in definitions.get("queues") or []
        if queue.get("vhost") == vhost and (match := _STREAM.fullmatch(str(queue.get("name"))))
    }
    if not numbers:
        return ""
    recorded = [
        parameter.get("value")
        for parameter in definitions.get("global_parameters") or []
        if parameter.get("name") == PARTITIONS_PARAMETER + vhost
    ]
    present = int(recorded[0]) if recorded and str(recorded[0]).isdigit() else max(numbers) + 1
    return "" if present == count else f"holds {present} archive streams in vhost {vhost}, declared are {count}"

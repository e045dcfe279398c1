# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a RabbitMQ node runs with, compared with what is declared, and changed live.

``rabbitmqctl set_vm_memory_high_watermark`` and its like last until the next start, and no file and no definition shows
them. The node is asked once, and told once, through ``rabbitmqctl eval``. The Erlang functions are those that the
commands of rabbitmqctl call; tried on RabbitMQ 3.10 and 4.0.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

# Whole numbers of the application's environment, by their names in rabbitmq.conf.
NUMBERS = ("collect_statistics_interval", "consumer_timeout", "heartbeat", "max_message_size")
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency", "none")
_SIZE = re.compile(r"[0-9]+([kKMGTP]i?)?B?")


class NodeError(Exception):
    """The node could not be asked, or told; the message says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One thing that a node runs with.

    Attributes:
        name: what a person calls it.
        read: Erlang expression of a text that is equal for equal values.
        declared: Erlang expression of the text that it should be.
        write: Erlang expression that sets it.
    """

    name: str
    read: str
    declared: str
    write: str


def _text(term: str) -> str:
    return f'lists:flatten(io_lib:format("~0p", [{term}]))'


def _size(name: str, value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise ValueError(f"{name}: {value!r} is not a valid size. Write a number with MiB or GiB, such as 512MiB")
    return f'"{value}"'


def _number(name: str, value: t.Any) -> Setting:
    if name not in NUMBERS:
        raise ValueError(f"settings: {name!r} is not one of {', '.join(NUMBERS)}")
    read = f"application:get_env(rabbit, {name}, undefined)"
    return Setting(name, _text(read), _text(str(int(value))), f"application:set_env(rabbit, {name}, {int(value)})")


def _tracing(vhost: str) -> Setting:
    term = "<<" + ",".join(map(str, vhost.encode())) + ">>"
    read = f"lists:member({term}, application:get_env(rabbit, trace_vhosts, []))"
    return Setting(f"tracing of vhost {vhost}", _text(read), _text("false"), f"rabbit_trace:stop({term})")


def settings_of(parameters: t.Mapping[str, t.Any]) -> list[Setting]:
    """Return what a module's parameters declare.

    Raises:
        ValueError: a value is not valid; the message names the option.
    """
    found = []
    if parameters.get("memory_limit"):
        limit = f"{{absolute, {_size('memory_limit', parameters['memory_limit'])}}}"
        read = _text("vm_memory_monitor:get_vm_memory_high_watermark()")
        write = f"vm_memory_monitor:set_vm_memory_high_watermark({limit})"
        found.append(Setting("memory_limit", read, _text(limit), write))
    if parameters.get("disk_free_limit"):
        limit = _size("disk_free_limit", parameters["disk_free_limit"])
        declared = f"element(2, rabbit_resource_monitor_misc:parse_information_unit({limit}))"
        write = f"rabbit_disk_monitor:set_disk_free_limit({limit})"
        found.append(
            Setting("disk_free_limit", _text("rabbit_disk_monitor:get_disk_free_limit()"), _text(declared), write)
        )
    if parameters.get("log_level"):
        level = parameters["log_level"]
        read = _text("maps:get(level, logger:get_primary_config())")
        found.append(Setting("log_level", read, _text(level), f"rabbit_prelaunch_logging:set_log_level({level})"))
    found += [_number(name, value) for name, value in (parameters.get("settings") or {}).items()]
    return found + [_tracing(vhost) for vhost in parameters.get("untraced_vhosts") or ()]


class Node:
    """The node of this host.

    Args:
        run: runs a command, given as a list, and returns its exit code, its output and its errors.
    """

    def __init__(self, run: t.Callable[[list[str]], tuple[int, str, str]]) -> None:
        self._run = run

    def _evaluate(self, expression: str) -> list[str]:
        code, out, err = self._run(["rabbitmqctl", "--quiet", "eval", f"{expression}."])
        if code:
            said = (err or out).strip().splitlines() or ["nothing"]
            raise NodeError(f"the node does not answer rabbitmqctl, which says {said[0]!r}. Check that RabbitMQ runs")
        return out.splitlines()

    def differences(self, settings: t.Sequence[Setting]) -> list[dict[str, t.Any]]:
        """Return what the node runs with and is not declared, as the modules of the collection tell it."""
        pairs = [f'io:format("~s~n~s~n", [{item.read}, {item.declared}])' for item in settings]
        lines = self._evaluate(", ".join([*pairs, "ok"]))
        if len(lines) < 2 * len(settings):
            raise NodeError(f"the node answers rabbitmqctl with {' '.join(lines)!r}")
        found = zip(settings, lines[0::2], lines[1::2])  # noqa: B905
        return [_difference(item.name, actual, declared) for item, actual, declared in found if actual != declared]

    def write(self, settings: t.Sequence[Setting]) -> None:
        """Set all of these. They last until the next start, which reads the files."""
        self._evaluate(", ".join([*(item.write for item in settings), "ok"]))


def _difference(name: str, actual: str, declared: str) -> dict[str, t.Any]:
    return {
        "layer": "runtime",
        "kind": "setting",
        "name": name,
        "action": "update",
        "actual": actual,
        "declared": declared,
        "sentence": f"{name}: running {actual}, declared {declared}",
    }

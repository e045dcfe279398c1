# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that hold across the variables of the worker role, each broken one as a sentence."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

INSTANCE = re.compile(r"[a-z0-9_-]+")
# The broker makes its keys of these names; what older clients sent lies in QUEUE:PRIORITY.
QUEUE = re.compile(r"[A-Za-z0-9_.-]+")
APPLICATION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_][\w.]*)?")
SETTING = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_QUEUES = re.compile(r"unacked.*|_kombu\..*|celeryev.*|.*\.pidbox|celery\.undeliverable")
# Options of the transport that have a variable, or that all programs which use the broker must agree on.
TRANSPORT_OPTIONS = {
    "deadletter_queue": "it is fixed, because diagnose and monitoring look for undeliverable messages there",
    "global_keyprefix": "it is fixed, because programs that know only the broker's URL use no prefix",
    "sep": "it is fixed, because programs that know only the broker's URL use kombu's own separator",
    "visibility_timeout": "use worker_visibility_timeout instead, which is held against the time limits",
}
MEMORY = re.compile(r"[1-9]\d*[KMGT]?|[1-9]\d?%|100%|infinity")
GIT = re.compile(r"git\+(https|ssh|file)://\S+")
ARCHIVES = (".whl", ".tar.gz", ".zip")
# Seconds that the visibility timeout must exceed every limit by.
VISIBILITY_MARGIN = 300


def application_source(source: str) -> str:
    """Return what *source* is: ``git``, ``directory``, ``archive``, or nothing when there is none."""
    if not source:
        return ""
    if source.startswith("git+"):
        return "git"
    return "archive" if source.endswith(ARCHIVES) else "directory"


def node_names(instances: t.Sequence[t.Mapping[str, t.Any]], host: str) -> list[str]:
    """Return the node name, NAME@HOST, of each instance of a host.

    Args:
        instances: its ``worker_instances``; without any it has the role's default.
        host: its name in the inventory, which is unique.
    """
    place = re.sub(r"[^A-Za-z0-9.-]", "-", host)
    return [f"{instance['name']}@{place}" for instance in instances or [{"name": "default"}]]


def worker_problems(declared: dict[str, t.Any]) -> list[str]:
    """Return a sentence for every rule that the declaration breaks.

    Args:
        declared: the role's variables by name, and what the role computed from the inventory:
            ``queues`` (every declared queue), ``priority_steps``, ``result_expires``, ``result_partitions``,
            ``beat_hosts`` (hosts with beat), ``setting_variables``
            (Celery settings that the role writes, with the variable for each), ``sandbox`` (known options).
    """
    problems: list[str] = []
    for rule in (_application, _instances, _limits, _queues, _beat, _results, _settings, _unit):
        problems += rule(declared)
    return problems


def _application(v: dict[str, t.Any]) -> list[str]:
    found = []
    app, source, version = v["worker_app"], v["worker_app_source"], v["worker_app_version"]
    if not app:
        found.append(
            "worker_app is not set: name the module that holds the Celery object, as in 'celery -A', for example "
            "payments."
        )
    elif not APPLICATION.fullmatch(app):
        found.append(f"worker_app is {app!r}: it must be a module such as payments, or module:attribute.")
    kind = application_source(source)
    if not kind and not v["worker_app_requirements"]:
        found.append(
            "worker_app_source is not set: give a directory with a pyproject.toml or a wheel on the control "
            "node, or a git+https:// URL; "
            "or name the application in worker_app_requirements, to take it from a package index."
        )
    elif kind == "git":
        found += _git(source)
    elif kind:
        found += _local(source, kind)
    if version and kind != "git":
        found.append(
            "worker_app_version is set, but only a git URL in worker_app_source has versions to choose from: remove it."
        )
    return found


def _git(source: str) -> list[str]:
    if not GIT.fullmatch(source):
        return [
            "worker_app_source starts with git+ and must go on with https:// or ssh://, then host and path of "
            "the repository."
        ]
    rest = source.split("://", 1)[1]
    authority, path = rest.partition("/")[::2]
    if ":" in authority.rpartition("@")[0]:
        return [
            "worker_app_source contains a password, which others would see in the list of processes: use "
            "git+ssh:// with a deploy key, "
            "or put the password into root's ~/.netrc on the worker hosts."
        ]
    if "@" in path:
        return ["worker_app_source ends with '@' and a version: put the version into worker_app_version."]
    return []


def _local(source: str, kind: str) -> list[str]:
    path = Path(source).expanduser()
    if not path.is_absolute():
        return [
            f"worker_app_source is {source}: name an absolute path on the control node, for example "
            '"{{ inventory_dir }}/../payments", a wheel, or a git+https:// URL.'
        ]
    if kind == "archive":
        return [] if path.is_file() else [f"worker_app_source is {source}: there is no such file on the control node."]
    if not path.is_dir():
        return [f"worker_app_source is {source}: there is no such directory on the control node."]
    if not any((path / name).is_file() for name in ("pyproject.toml", "setup.py")):
        return [
            f"worker_app_source is {source}: the directory has neither pyproject.toml nor setup.py, so pip cannot "
            "install it. "
            "Name the directory of the Python project."
        ]
    return []


def _instances(v: dict[str, t.Any]) -> list[str]:
    found = []
    instances = v["worker_instances"]
    if not instances:
        found.append(
            "worker_instances is empty: declare at least one, for example [{name: default, queues: [celery]}]."
        )
    names = [instance["name"] for instance in instances]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found.append(
            f"worker_instances has two instances of the name {', '.join(twice)}: each needs a name of its own."
        )
    for instance in instances:
        name = f"worker_instances: instance {instance['name']!r}"
        if not INSTANCE.fullmatch(instance["name"]):
            found.append(
                f"{name} must have a name of lower-case letters, digits, '-' and '_', because it names a unit."
            )
        if not instance["queues"]:
            found.append(f"{name} consumes no queue: name at least one in its queues.")
        concurrency = instance.get("concurrency")
        if concurrency is not None and int(concurrency) < 1:
            found.append(
                f"{name} has a concurrency of {concurrency}: it must be at least 1, or left out for one per CPU."
            )
        pool = instance.get("pool", "prefork")
        if pool == "solo" and concurrency is not None and int(concurrency) != 1:
            found.append(
                f"{name} has the pool solo, which runs one task at a time: set its concurrency to 1 or choose "
                "another pool."
            )
        if pool == "gevent" and not _requires(v, "gevent"):
            found.append(f"{name} has the pool gevent: add gevent to worker_app_requirements.")
        if any(any(ord(character) < 32 for character in str(option)) for option in instance.get("options", [])):
            found.append(f"{name} has an option with a line break.")
    return found


def _requires(v: dict[str, t.Any], package: str) -> bool:
    wanted = [*v["worker_packages"], *v["worker_app_requirements"]]
    return any(re.match(rf"{package}\b", requirement, re.IGNORECASE) for requirement in wanted)


def _limits(v: dict[str, t.Any]) -> list[str]:
    found = []
    visibility = int(v["worker_visibility_timeout"])
    declared = [
        (
            "worker_task_time_limit",
            "worker_task_soft_time_limit",
            v["worker_task_time_limit"],
            v["worker_task_soft_time_limit"],
        )
    ]
    for instance in v["worker_instances"]:
        if "time_limit" in instance or "soft_time_limit" in instance:
            name = f"worker_instances: instance {instance['name']!r}:"
            declared.append(
                (
                    f"{name} time_limit",
                    "soft_time_limit",
                    instance.get("time_limit", v["worker_task_time_limit"]),
                    instance.get("soft_time_limit", v["worker_task_soft_time_limit"]),
                )
            )
    for hard_name, soft_name, hard_value, soft_value in declared:
        hard, soft = int(hard_value), int(soft_value)
        if hard < 1 or soft < 1:
            found.append(f"{hard_name} is {hard} and {soft_name} {soft}: both must be at least one second.")
        elif soft >= hard:
            found.append(
                f"{soft_name} is {soft}, {hard_name} {hard}: the soft limit must be the lower one, or a task is "
                "killed before it can clean up."
            )
        if hard + VISIBILITY_MARGIN >= visibility:
            found.append(
                f"worker_visibility_timeout is {visibility}: it must be more than {hard_name} ({hard}) plus "
                f"{VISIBILITY_MARGIN} s, "
                "or Redis hands a task that still runs to a second worker. Raise it, or lower the limit."
            )
    longest = int(v["worker_longest_countdown"])
    if longest + VISIBILITY_MARGIN >= visibility:
        found.append(
            f"worker_visibility_timeout is {visibility}: it must be more than worker_longest_countdown "
            f"({longest}) plus {VISIBILITY_MARGIN} s, or a task that waits for its time is handed to a second worker. "
            "Raise it, or lower the countdown."
        )
    return found


def _queues(v: dict[str, t.Any]) -> list[str]:
    known = set(v["queues"])
    found = [
        f"The queue {queue!r} (worker_instances, worker_queues or worker_default_queue) has a name that cannot be one: "
        "take letters, digits, '.', '-', '_', and none of Celery's own names (unacked, _kombu…, celeryev…, ….pidbox)."
        for queue in sorted(known)
        if not QUEUE.fullmatch(queue) or RESERVED_QUEUES.fullmatch(queue)
    ]
    steps = [int(step) for step in v["priority_steps"]]
    if not steps or steps != sorted(set(steps)) or steps[0] != 0 or steps[-1] > 9:
        found.append(
            f"priority_steps in worker_broker_transport_options is {steps}: it must be a rising list from 0 to "
            "at most 9, such as [0, 3, 6, 9]."
        )
    priority = v["worker_settings"].get("task_default_priority")
    if priority is not None and not 0 <= int(priority) <= 9:
        found.append(f"task_default_priority in worker_settings is {priority}: it must be 0 (first) to 9 (last).")
    for task, route in v["worker_task_routes"].items():
        queue = route.get("queue") if isinstance(route, dict) else route
        if queue and queue not in known:
            found.append(
                f"worker_task_routes sends {task} to the queue {queue!r}, which no worker consumes: "
                "add it to an instance of worker_instances, or to worker_queues when it is consumed elsewhere."
            )
    return found


def _beat(v: dict[str, t.Any]) -> list[str]:
    if len(v["beat_hosts"]) < 2:
        return []
    return [
        f"worker_beat_enabled is true on {', '.join(v['beat_hosts'])}: beat must run once per deployment, or "
        "every periodic task is sent twice. "
        "Leave it unset (then it runs on the first host of the group worker), or set it on one host."
    ]


def _results(v: dict[str, t.Any]) -> list[str]:
    found = []
    partitions, expires = int(v["result_partitions"]), int(v["result_expires"])
    if not 1 <= partitions <= 64:
        found.append(
            f"partitions in worker_result_transport_options is {partitions}: it must be 1 to 64, and the same as "
            "rabbitmq_partitions."
        )
    if expires < 60:
        found.append(
            f"result_expires in worker_settings, or rabbitmq_result_expires, is {expires}: it must be at least 60 "
            "seconds."
        )
    return found


def _settings(v: dict[str, t.Any]) -> list[str]:
    found = [
        f"worker_broker_transport_options may not contain {name}: {remedy}."
        for name, remedy in TRANSPORT_OPTIONS.items()
        if name in v["worker_broker_transport_options"]
    ]
    for name in v["worker_settings"]:
        if not SETTING.fullmatch(name):
            found.append(
                f"worker_settings has {name!r}, which is not the name of a Celery setting: they are lower case, such "
                "as task_compression."
            )
        elif name in ("broker_url", "broker_read_url", "broker_write_url", "result_backend"):
            variable = "worker_result_backend" if name == "result_backend" else "worker_broker_url"
            found.append(
                f"worker_settings has {name}, which would put a password into a file that workers can read: "
                f"use {variable}, which goes into the environment file."
            )
        elif name in v["setting_variables"]:
            variable = v["setting_variables"][name]
            remedy = (
                f"use {variable} instead"
                if variable
                else "it is fixed, because tasks or results would be lost or unreadable without it"
            )
            found.append(f"worker_settings may not contain {name}, because the role writes it: {remedy}.")
    return found


def _unit(v: dict[str, t.Any]) -> list[str]:
    found = []
    unknown = sorted(set(v["worker_sandbox_disabled"]) - set(v["sandbox"]))
    if unknown:
        found.append(
            f"worker_sandbox_disabled names {', '.join(unknown)}; known are {', '.join(sorted(v['sandbox']))}."
        )
    if not MEMORY.fullmatch(str(v["worker_memory_max"])):
        found.append(
            f"worker_memory_max is {v['worker_memory_max']!r}: write it as 4G, 80% or infinity, as systemd does."
        )
    return found

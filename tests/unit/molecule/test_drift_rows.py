"""Every task that manages something has a row in the table of the molecule scenario 'drift'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rows import EXEMPT, EXEMPT_FILES, ROWS

ROLES = Path(__file__).resolve().parents[3] / "roles"
# These only read, decide, or bring in others.
READING = {
    "assert",
    "fail",
    "find",
    "git",
    "import_tasks",
    "include_tasks",
    "include_vars",
    "meta",
    "rabbitmq_objects_info",
    "set_fact",
    "setup",
    "slurp",
    "stat",
    "uri",
    "wait_for",
}
# One task of these manages many kinds of things: each is an option that takes a list.
OF_KINDS = {
    "redis_runtime": {"config_file", "settings", "users"},
    "rabbitmq_runtime": {"disk_free_limit", "log_level", "memory_limit", "settings", "untraced_vhosts"},
    "rabbitmq_topology": {
        "bindings",
        "exchanges",
        "global_parameters",
        "operator_policies",
        "parameters",
        "permissions",
        "policies",
        "queues",
        "topic_permissions",
        "user_limits",
        "users",
        "vhost_limits",
        "vhosts",
    },
}


def tasks(items):
    for item in items or []:
        if "block" in item:
            for part in ("block", "rescue", "always"):
                yield from tasks(item.get(part))
        else:
            yield item


def paths(task):
    """Return the paths of a task that writes files; of a list that a variable makes, the variable's name."""
    given = task["celeryops.hybrid.managed_files"]["files"]
    names = re.findall(r"__\w+", given) if isinstance(given, str) else []
    lists = {name: task.get("vars", {}).get(name, name) for name in names} or {"": given}
    for name, entries in lists.items():
        yield from [name] if isinstance(entries, str) else (entry["path"] for entry in entries)


def managed(path):
    """Yield the names of what the tasks of a file manage."""
    role = path.parts[-3]
    for task in tasks(yaml.safe_load(path.read_text())):
        module = next(key for key in task if key.count(".") >= 2).rpartition(".")[2]
        if module in OF_KINDS:
            own = task[f"celeryops.hybrid.{module}"]
            yield from (f"{role}: {kind}" for kind in OF_KINDS[module] & set(own))
        elif module == "managed_files":
            yield from (f"{role}: {name}" for name in paths(task))
        elif module in READING or task.get("changed_when") is False:
            continue
        elif module != "debug" or task.get("changed_when"):
            yield f"{role}: {task['name']}"


FILES = [path for path in sorted(ROLES.glob("*/tasks/*.yml")) if str(path.relative_to(ROLES)) not in EXEMPT_FILES]
COVERED = {name for row in ROWS for name in row.covers}
MANAGED = {name for path in FILES for name in managed(path)}


@pytest.mark.parametrize("name", sorted(MANAGED))
def test_managed_thing_has_a_row(name):
    assert name in COVERED | set(EXEMPT), f"molecule/drift/tests/rows.py needs a row that covers {name!r}"


def test_no_row_and_no_exemption_outlives_its_task():
    assert sorted((COVERED | set(EXEMPT)) - MANAGED) == []
    assert [name for name in EXEMPT_FILES if not (ROLES / name).exists()] == []


def test_nothing_is_exempt_that_has_a_row():
    assert sorted(COVERED & set(EXEMPT)) == []

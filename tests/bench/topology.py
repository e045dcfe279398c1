#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure rabbitmq_topology beside the modules of community.rabbitmq, in one run on one machine.

Both declare the same 25 objects on the host of ``tests/inventory/bench.yml``, each in a vhost of its own, first
where nothing is and then where all is. Then ours compares 1,000 objects. What counts is the ratio; no figure makes
this fail.

    python -m tests.bench.topology [-i INVENTORY] [--rounds 1] [--keep] [--write docs/topology-benchmark.md]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
Tasks = list[dict[str, Any]]
LOGIN = {"username": "admin", "password": "{{ rabbitmq_admin_password }}"}
FIRST_GOAL, AGAIN_GOAL, THOUSAND_GOAL_S = 20.0, 25.0, 3.0


def ansible(name: str, *arguments: str | Path, **environment: str) -> str:
    """Run a program of Ansible in the checkout; return its output.

    Raises:
        SystemExit: it failed.
    """
    settings = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible" / "collections"),
        **environment,
    }
    done = subprocess.run(
        [BIN / name, *arguments], cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(f"{name} has failed:\n{done.stdout[-4000:]}")
    return done.stdout


def seconds(inventory: Path, folder: Path, tasks: Tasks, unchanged: bool) -> float:
    """Run tasks on the host, and return what they took, from the first one's start to the last one's end.

    Raises:
        SystemExit: a task failed, or changed something where nothing was to be done.
    """
    path = folder / "play.json"
    path.write_text(json.dumps([{"hosts": "rabbitmq", "become": True, "gather_facts": False, "tasks": tasks}]))
    answer = ansible("ansible-playbook", "-i", inventory, path, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
    report = json.loads(answer[answer.index("{") :])
    (stats,) = report["stats"].values()
    if unchanged and stats["changed"]:
        print(f"{stats['changed']} tasks have changed something again")
    durations = [task["task"]["duration"] for task in report["plays"][0]["tasks"]]
    begin, end = (datetime.datetime.fromisoformat(durations[at][key]) for at, key in ((0, "start"), (-1, "end")))
    return (end - begin).total_seconds()


def objects(vhost: str, password: str) -> dict[str, list[dict[str, Any]]]:
    """Return 25 objects as our module takes them."""
    users, here = [f"{vhost}-{name}" for name in ("web", "worker", "audit")], {"vhost": vhost}
    # Without blanks, with which theirs fails.
    names = [f"orders.{number}" for number in range(5)]
    return {
        "vhosts": [{"name": vhost}],
        "users": [{"name": user, "password": password} for user in users],
        "permissions": [
            {**here, "user": user, "configure": "^x", "write": f"^orders[.]{number}", "read": ".*"}
            for number, user in enumerate(users)
        ],
        "vhost_limits": [{**here, "name": "max-queues", "value": 50}],
        "global_parameters": [{"name": f"{vhost}-owner", "value": "ops"}],
        "policies": [
            {**here, "name": name, "pattern": f"^{name}$", "apply_to": "queues", "definition": {"max-length": 1000}}
            for name in names[:3]
        ],
        "exchanges": [{**here, "name": name, "type": "topic"} for name in ("orders", "returns", "audit")],
        "queues": [{**here, "name": name, "arguments": {"x-max-priority": 5}} for name in names],
        "bindings": [{**here, "source": "orders", "destination": name, "routing_key": f"{name}.#"} for name in names],
    }


def theirs(declared: dict[str, list[dict[str, Any]]]) -> Tasks:
    """Return the tasks that declare the same with community.rabbitmq: one for each object, permissions with users."""
    login = {f"login_{name}": value for name, value in zip(("user", "password"), LOGIN.values(), strict=True)}
    rights = {item["user"]: item for item in declared["permissions"]}
    (vhost,) = declared["vhosts"]
    node = {"node": "rabbit@localhost"}

    def task(module: str, **options: Any) -> dict[str, Any]:
        return {f"community.rabbitmq.rabbitmq_{module}": options}

    def permissions(user: str) -> list[dict[str, str]]:
        item = rights[user]
        return [
            {
                "vhost": item["vhost"],
                "configure_priv": item["configure"],
                "write_priv": item["write"],
                "read_priv": item["read"],
            }
        ]

    return [
        task("vhost", name=vhost["name"], **node),
        *(
            task("user", user=item["name"], password=item["password"], permissions=permissions(item["name"]), **node)
            for item in declared["users"]
        ),
        *(
            task("vhost_limits", vhost=item["vhost"], max_queues=item["value"], **node)
            for item in declared["vhost_limits"]
        ),
        *(task("global_parameter", name=item["name"], value='"ops"', **node) for item in declared["global_parameters"]),
        *(
            task(
                "policy",
                vhost=item["vhost"],
                name=item["name"],
                pattern=item["pattern"],
                apply_to=item["apply_to"],
                tags=item["definition"],
                **node,
            )
            for item in declared["policies"]
        ),
        *(task("exchange", **item, **login) for item in declared["exchanges"]),
        *(task("queue", **item, **login) for item in declared["queues"]),
        *(
            task(
                "binding",
                vhost=item["vhost"],
                name=item["source"],
                destination=item["destination"],
                destination_type="queue",
                routing_key=item["routing_key"],
                **login,
            )
            for item in declared["bindings"]
        ),
    ]


def ours(declared: dict[str, list[dict[str, Any]]]) -> Tasks:
    """Return the task that declares it with our module."""
    return [{"celeryops.hybrid.rabbitmq_topology": {**LOGIN, **declared}}]


def thousand(vhost: str) -> dict[str, list[dict[str, Any]]]:
    """Return 1,000 objects."""
    here = {"vhost": vhost}
    names = [f"queue {number}" for number in range(450)]
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [{**here, "name": f"exchange {number}", "type": "topic"} for number in range(99)],
        "queues": [{**here, "name": name} for name in names],
        "bindings": [{**here, "source": "exchange 0", "destination": name, "routing_key": name} for name in names],
    }


def line(name: str, values: Sequence[float], other: Sequence[float] = (), goal: float = 0) -> str:
    """Return a line of the table; the ratio is the median of the rounds' ratios."""
    held = ""
    if other:
        ratio = statistics.median(one / ours for one, ours in zip(other, values, strict=True))
        held = f"{ratio:.1f} | at least {goal:.0f}: {'held' if ratio >= goal else '**missed**'}"
    elif goal:
        held = f" | at most {goal:.0f} s: {'held' if statistics.median(values) <= goal else '**missed**'}"
    spread = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    return f"| {name} | {spread} | {held or ' | '} |"


def measure(inventory: Path, rounds: int) -> list[str]:
    """Return the report, as Markdown."""
    first: dict[str, list[float]] = {"theirs": [], "ours": []}
    again: dict[str, list[float]] = {"theirs": [], "ours": []}
    # New names, because a kept host has those of an earlier run.
    password, run = secrets.token_hex(16), secrets.token_hex(3)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A connection is there already, and the modules that theirs need.
        seconds(inventory, folder, [{"ansible.builtin.apt": {"name": "python3-requests", "update_cache": True}}], False)
        for number in range(rounds):
            sides = {
                "theirs": theirs(objects(f"theirs-{run}-{number}", password)),
                "ours": ours(objects(f"ours-{run}-{number}", password)),
            }
            # Both vhosts are there: theirs gives the administrator no right in a new one, and would fail at exchanges.
            for vhost in (f"theirs-{run}-{number}", f"ours-{run}-{number}"):
                rights = ["rabbitmqctl", "set_permissions", "-p", vhost, LOGIN["username"], ".*", ".*", ".*"]
                prepared: Tasks = [
                    {"community.rabbitmq.rabbitmq_vhost": {"name": vhost, "node": "rabbit@localhost"}},
                    {"ansible.builtin.command": {"argv": rights}},
                ]
                seconds(inventory, folder, prepared, False)
            for figures, unchanged in ((first, False), (again, True)):
                for side, tasks in sides.items():
                    figures[side].append(seconds(inventory, folder, tasks, unchanged))
                    print(
                        f"{side}, {'nothing to do' if unchanged else 'first run'}: {figures[side][-1]:.2f} s",
                        flush=True,
                    )
        many = ours(thousand(f"thousand-{run}"))
        made = seconds(inventory, folder, many, False)
        compared = [seconds(inventory, folder, many, True) for _ in range(3)]
        versions = json.loads(
            ansible(
                "ansible-playbook", "-i", inventory, write_facts(folder), ANSIBLE_STDOUT_CALLBACK="ansible.posix.json"
            )
        )
    facts = versions["plays"][0]["tasks"][-1]["hosts"]
    (version,) = {answer["version"] for answer in facts.values()}
    return [
        "# Benchmark of rabbitmq_topology",
        "",
        "Written by `make bench-topology`, not by hand. Both sides declare the same 25 objects in one run",
        "on one machine, which may do other things meanwhile; **the ratios are what counts**. Times are in seconds,",
        "from the start of the first task to the end of the last one, over SSH: the median, the smallest and the",
        "largest of all rounds. Ours takes one task for all objects, theirs one for each (permissions go with the",
        "users); the vhosts exist beforehand, because theirs gives the administrator no right in a new one.",
        "",
        f"* run: {datetime.date.today().isoformat()}, {rounds} round(s)",
        f"* machine: {os.cpu_count()} cores {platform.machine()}, load average {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, other programs included",
        f"* RabbitMQ {version}, community.rabbitmq as of requirements-dev.txt, Python {platform.python_version()}",
        "",
        "| what | seconds | times as fast | goal |",
        "| --- | --- | --- | --- |",
        line("community.rabbitmq, first run", first["theirs"]),
        line("ours, first run", first["ours"], first["theirs"], FIRST_GOAL),
        line("community.rabbitmq, nothing to do", again["theirs"]),
        line("ours, nothing to do", again["ours"], again["theirs"], AGAIN_GOAL),
        line("ours, 1,000 objects, first run", [made]),
        line("ours, 1,000 objects, nothing to do", compared, goal=THOUSAND_GOAL_S),
    ]


def write_facts(folder: Path) -> Path:
    """Write the play that asks for RabbitMQ's version."""
    path = folder / "facts.json"
    task = {"celeryops.hybrid.rabbitmq_topology_info": {**LOGIN, "vhosts": []}}
    path.write_text(json.dumps([{"hosts": "rabbitmq", "gather_facts": False, "tasks": [task]}]))
    return path


def main() -> None:
    """Bring the host up, measure, print, and remove the host, whatever happens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-i", "--inventory", type=Path, default=ROOT / "tests" / "inventory" / "bench.yml")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the host, for the next run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report there as well")
    arguments = parser.parse_args()
    inventory = arguments.inventory.resolve()
    hosts = (BIN / "python", ROOT / "tests" / "hosts" / "testhosts.py")
    try:
        subprocess.run([*hosts, "up", "-i", inventory], cwd=ROOT, check=True)
        ansible("ansible-playbook", "-i", inventory, "celeryops.hybrid.site")
        report = "\n".join(measure(inventory, arguments.rounds)) + "\n"
    finally:
        if not arguments.keep:
            subprocess.run([*hosts, "down", "-i", inventory], cwd=ROOT, check=False)
    print(report)
    if arguments.write:
        arguments.write.write_text(report)


if __name__ == "__main__":
    main()

"""What the `remove` playbook refuses, and that it forgets nothing that the roles have written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = ROOT / "playbooks" / "remove.yml"
PLAYS = yaml.safe_load(PLAYBOOK.read_text())
ROLES = ("worker", "monitoring", "rabbitmq", "redis")
INVENTORY = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  children:
    redis: {hosts: {server1: {}}}
    rabbitmq: {hosts: {server1: {}}}
    worker: {hosts: {worker1: {}, worker2: {}}}
"""
# Folders of the packages stay with what others have in them.
STAY = {"/etc/redis", "/etc/rabbitmq", "/etc/rabbitmq/conf.d"}


def tasks(role):
    """Yield the tasks of a role, those of blocks as well, but not those of remove.yml."""

    def flat(items):
        for item in items or []:
            yield from flat(item["block"]) if "block" in item else [item]

    for path in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        if not path.name.startswith("remove"):
            yield from flat(yaml.safe_load(path.read_text()))


def written(role):
    """Return the files and links that a role writes with managed_files, as its tasks name them."""
    found = set()
    for task in tasks(role):
        given = task.get("celeryops.hybrid.managed_files", {}).get("files", [])
        lists = (
            [given] if isinstance(given, list) else [v for v in task.get("vars", {}).values() if isinstance(v, list)]
        )
        found |= {entry["path"] for entries in lists for entry in entries if entry.get("state") != "directory"}
    return found


@pytest.mark.parametrize("role", ROLES)
def test_every_file_that_a_role_writes_is_removed(role):
    text = (ROOT / "roles" / role / "tasks" / "remove.yml").read_text()
    variables = yaml.safe_load((ROOT / "roles" / role / "vars" / "main.yml").read_text())

    def rendered(path):
        # As far as a variable is a path and nothing else.
        for _ in range(3):
            path = re.sub(
                r"{{ (__\w+) }}",
                lambda match: (
                    str(variables.get(match[1], match[0]))
                    if re.match(r"/|{{ __\w+ }}/", str(variables.get(match[1])))
                    else match[0]
                ),
                path,
            )
        return path

    removed = {rendered(path) for path in re.findall(r'^ +(?:- |path: )"?([/{][^"\n]*)"?$', text, re.M)}
    assert removed
    left = [
        path
        for path in map(rendered, written(role))
        if not any(path == gone or path.startswith(f"{gone}/") for gone in removed)
    ]
    assert left == []
    assert not removed & STAY


@pytest.mark.parametrize("play", PLAYS[1:], ids=lambda play: play["name"])
def test_a_host_that_was_not_checked_is_not_touched(play):
    (task,) = play["tasks"]
    role = task["ansible.builtin.include_role"]["name"].rpartition(".")[2]
    assert task["when"] == f"'{role}' in __remove_what | default([])"
    assert task["ansible.builtin.include_role"]["tasks_from"] == "remove"
    assert play["gather_facts"] is False
    assert play["any_errors_fatal"] is True


def test_workers_go_first_and_servers_last():
    assert [play["name"] for play in PLAYS[1:]] == ["Workers", "Monitoring", "Result store", "Broker"]


@pytest.mark.parametrize("role", ROLES)
def test_data_is_removed_only_when_asked(role):
    def flat(items):
        for item in items:
            yield from flat(item["block"]) if "block" in item else [item]

    removals = yaml.safe_load((ROOT / "roles" / role / "tasks" / "remove.yml").read_text())
    (data,) = [task for task in flat(removals) if task["name"] == "Remove the data"]
    assert "remove_data | default(false) | bool" in data["when"]


@pytest.fixture(scope="module")
def remove(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remove")
    inventory = folder / "inventory.yml"
    inventory.write_text(INVENTORY)

    def run(*arguments):
        """Run the playbook in check mode up to its refusals; every case here ends there."""
        command = [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "-i",
            str(inventory),
            "--check",
            str(PLAYBOOK),
            *arguments,
        ]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert not re.search(r"changed=[1-9]", done.stdout), done.stdout
        return " ".join(done.stdout.split())

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Nothing was named, and nothing has changed."),
        (("-e", "remove_what=redis,flower", "--limit", "server1"), "remove_what has flower, which is not one of"),
        (("-e", "remove_workers=true"), "confirm with -e remove_confirm=worker1,worker2"),
        (
            ("-e", "remove_workers=true", "-e", "remove_confirm=worker1"),
            "remove_confirm names worker1, and this run is",
        ),
        (("-e", "remove_instances=slow", "-e", "remove_workers=true", "--limit", "worker1"), "set one of them"),
        (("-e", "remove_instances=slow", "-e", "remove_data=true", "--limit", "worker1"), "is for whole hosts"),
    ],
)
def test_what_was_not_meant_is_refused(remove, arguments, sentence):
    assert sentence in remove(*arguments)

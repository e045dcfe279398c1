#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_environment
short_description: Find a virtual environment that is as it was built
version_added: 0.1.0
description:
  - Writes down what a virtual environment holds when it is complete, and finds what differs from that later - edited
    modules, other versions of packages, files that were added such as a stray C(.pth), owners and modes.
  - Nothing is changed in an environment. One that differs is to be built again beside it, where the module says; what
    runs is not disturbed until it is restarted.
  - Bytecode in C(__pycache__) is not compared, because Python writes it when it likes.
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Reports, and writes nothing.
  diff_mode:
    support: full
    description: Shows each path that differs.
  idempotent:
    support: full
    description: A second run changes nothing; with O(state=found) once there is an environment that is as it was built.
options:
  path:
    description:
      - Where the environment is. With O(state=found) those with a number after it, such as V(PATH-2), are candidates
        too.
    type: path
    required: true
  state:
    description:
      - V(found) answers which environment to use, or where to build one.
      - V(recorded) writes down what it holds now, into C(contents.json) in it. It counts as complete when its builder
        has put C(complete.json) beside that.
    type: str
    choices: [found, recorded]
    default: found
  link:
    description: Symbolic link to the environment in use, which is the first candidate and never a place to build.
    type: path
  replaces:
    description:
      - With O(state=recorded), environments that this one replaces. What was changed in them is copied to O(backup).
    type: list
    elements: path
    default: []
  backup:
    description: Folder that takes these copies. Files above 1 MiB are left out.
    type: path
    default: /var/backups/celeryops
"""

EXAMPLES = r"""
- name: Find an environment that is as it was built
  celeryops.hybrid.virtual_environment:
    path: /opt/shop/environments/4711
    link: /opt/shop/venv
  register: found

- name: Build one
  ansible.builtin.command:
    argv: [/usr/bin/python3, -m, venv, "{{ found.environment }}"]
    creates: "{{ found.environment }}/bin/python"
  when: not found.complete

- name: Write down what it holds
  celeryops.hybrid.virtual_environment:
    path: "{{ found.environment }}"
    state: recorded
    replaces: "{{ found.damaged }}"
  when: not found.complete
"""

RETURN = r"""
environment:
  description: The environment to use, or where it is to be built.
  returned: always
  type: str
  sample: /opt/shop/environments/4711-2
complete:
  description: Whether it is there, complete and as it was built.
  returned: with O(state=found)
  type: bool
  sample: false
damaged:
  description: Environments that are no longer as they were built and would have been used, the one in use first.
  returned: with O(state=found)
  type: list
  elements: str
  sample: [/opt/shop/environments/4711]
differences:
  description: What differs in the first of them, as the drift playbook reports it.
  returned: always
  type: list
  elements: dict
  sample:
    - layer: file
      kind: ''
      name: /opt/shop/environments/4711/bin/evil
      action: delete
      actual: a file
      declared: null
      since: '2026-01-01T03:00:00+00:00'
      sentence: '/opt/shop/environments/4711/bin/evil: a file, absent when the environment was built'
kept:
  description: Where the copy of each file is.
  returned: when something was copied
  type: dict
  sample:
    /opt/shop/environments/4711/bin/x: /var/backups/celeryops/20260101T030000.000000Z/opt/shop/environments/4711/bin/x
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._virtual_environment import (
    changes,
    choose,
    differences,
    keep,
    record,
)


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    return {
        "path": {"type": "path", "required": True},
        "state": {"choices": ["found", "recorded"], "default": "found"},
        "link": {"type": "path"},
        "replaces": {"type": "list", "elements": "path", "default": []},
        "backup": {"type": "path", "default": "/var/backups/celeryops"},
    }


def find(path: Path, link: str | None) -> dict[str, Any]:
    """Return the answer to ``state=found``."""
    choice = choose(path, Path(link) if link else None)
    told: list[dict[str, Any]] = []
    if choice.damaged:
        told = differences(*next(iter(choice.damaged.items())))
    return {
        "changed": bool(told),
        "environment": str(choice.environment),
        "complete": choice.complete,
        "damaged": [str(damaged) for damaged in choice.damaged],
        "differences": told,
        "diff": {
            "before": "".join(f"{item['name']}: {item['actual'] or 'absent'}\n" for item in told),
            "after": "".join(f"{item['name']}: {item['declared'] or 'absent'}\n" for item in told),
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    p = module.params
    path = Path(p["path"])
    result: dict[str, Any] = {"changed": False, "environment": str(path), "differences": []}
    try:
        if p["state"] == "found":
            result = find(path, p["link"])
        elif not module.check_mode:
            result["changed"] = record(path)
            kept: dict[str, str] = {}
            for damaged in map(Path, p["replaces"]):
                kept.update(keep(damaged, changes(damaged), Path(p["backup"])))
            if kept:
                result["kept"] = kept
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or path}: {exc.strerror or exc}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

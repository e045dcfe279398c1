#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: undeclared_files
short_description: Move files aside that are not declared
version_added: 0.1.0
description:
  - Some files take effect because they exist, such as drop-in files of a unit or the files of a C(conf.d). This module
    moves those aside that are not declared, and reports them. A unit that is masked is left to
    M(ansible.builtin.systemd_service).
  - Nothing is deleted. What is moved keeps its path, owner and mode below a folder of O(backup) that is named after
    the time.
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Reports, and moves nothing.
  diff_mode:
    support: full
    description: Shows each path that would be moved.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  folders:
    description: Folders in which every entry must be allowed. One that is missing holds nothing.
    type: list
    elements: path
    default: []
  absent:
    description: Single paths that must not exist.
    type: list
    elements: path
    default: []
  allowed:
    description:
      - What may stay, as shell patterns; names of entries, or whole paths when there is a slash in it.
    type: list
    elements: str
    default: []
  backup:
    description: Folder that takes what is moved.
    type: path
    default: /var/backups/celeryops
  pending:
    description: See the option of M(celeryops.hybrid.managed_files); both modules may use the same file.
    type: path
"""

EXAMPLES = r"""
- name: Leave no drop-in file but ours
  celeryops.hybrid.undeclared_files:
    folders: [/etc/systemd/system/redis-server.service.d]
    absent: [/etc/systemd/system/redis-server.service]
    allowed: [celeryops.conf]
"""

RETURN = r"""
differences:
  description: What was found, as the drift playbook reports it.
  returned: always
  type: list
  elements: dict
  sample:
    - layer: file
      kind: ''
      name: /etc/systemd/system/redis-server.service.d/override.conf
      action: delete
      actual: a file
      declared: null
      since: '2026-01-01T03:00:00+00:00'
      sentence: /etc/systemd/system/redis-server.service.d/override.conf is not declared
moved:
  description: Where each path is now.
  returned: when something was moved
  type: dict
  sample:
    /etc/rabbitmq/advanced.config: /var/backups/celeryops/20260101T030000.000000Z/etc/rabbitmq/advanced.config
"""

import datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._pending import Pending
from ansible_collections.celeryops.hybrid.plugins.module_utils._undeclared_files import (
    difference,
    move_aside,
    moved_before,
    still_in_use,
    undeclared,
)


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    return {
        "folders": {"type": "list", "elements": "path", "default": []},
        "absent": {"type": "list", "elements": "path", "default": []},
        "allowed": {"type": "list", "elements": "str", "default": []},
        "backup": {"type": "path", "default": "/var/backups/celeryops"},
        "pending": {"type": "path"},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    p = module.params
    places = (p["folders"], p["absent"], p["allowed"])
    pending = Pending(p["pending"])
    found = undeclared(*places)
    used = moved_before(pending, *places)
    result: dict[str, Any] = {
        "changed": bool(found or used),
        "differences": [*map(difference, found), *map(still_in_use, used)],
        "diff": {"before": "".join(f"{path}\n" for path in [*found, *used]), "after": ""},
    }
    if found and not module.check_mode:
        now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
        moved = result["moved"] = {}
        for path in found:
            try:
                pending.add(str(path))
                moved[str(path)] = str(move_aside(path, Path(p["backup"]), now))
            except OSError as exc:
                module.fail_json(msg=f"{path} cannot be moved to {p['backup']}: {exc}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

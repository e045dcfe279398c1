#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Write many small files in one task
version_added: 0.1.0
description:
  - Brings folders, small text files and links to their declaration, in the order in which they are given. One call for
    what would be five for each file with M(ansible.builtin.template), so that a drift check takes seconds.
  - Folders above one that is made are made as well, with the mode C(0755) whatever the umask is.
  - A file is replaced at once, never seen half. What stands in the way and is of another type is not removed.
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Reports, and writes nothing.
  diff_mode:
    support: full
    description: Shows each file, but of those with O(files[].secret) only that they differ.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  files:
    description: What is to be there.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      state:
        description: What it is.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: The text of a file, for example of the lookup P(ansible.builtin.template#lookup).
        type: str
      secret:
        description: The same, and never shown.
        type: str
      target:
        description: Where a link points to.
        type: path
      owner:
        description: Name of its owner; of a link none.
        type: str
        default: root
      group:
        description: Name of its group; of a link none.
        type: str
        default: root
      mode:
        description: Its permissions, as an octal number in quotes; needed for files and directories.
        type: str
      validate:
        description: A command that must accept the file before it is in use; V(%s) is where it is.
        type: str
  backup:
    description:
      - Folder that takes a copy of each file of another program that is replaced; that is one that begins with other
        lines than O(files[].content). Files with O(files[].secret) are not copied.
    type: path
  pending:
    description:
      - File that keeps the changed paths until they are in use; the task that restarts what reads them removes it.
      - While a path is in it, the task reports the path as changed, so that the next run makes good what one left out
        that ended before the restart.
      - Best below C(/run), so that a reboot, which is a restart, forgets it.
    type: path
"""

EXAMPLES = r"""
- name: Write a drop-in file and a secret
  celeryops.hybrid.managed_files:
    files:
      - {path: /etc/systemd/system/redis-server.service.d, state: directory, mode: '0755'}
      - path: /etc/systemd/system/redis-server.service.d/limits.conf
        content: |
          [Service]
          LimitNOFILE=65535
        mode: '0644'
      - {path: /root/token, secret: "{{ lookup('ansible.builtin.env', 'TOKEN') }}", mode: '0600'}
"""

RETURN = r"""
changed_paths:
  description: The paths that were, or would be, changed, and those that O(pending) names.
  returned: always
  type: list
  elements: str
  sample: [/root/token]
"""

from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._managed_files import bring
from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module
from ansible_collections.celeryops.hybrid.plugins.module_utils._pending import Pending


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    entry = {
        "path": {"type": "path", "required": True},
        "state": {"choices": ["file", "directory", "link", "absent"], "default": "file"},
        "content": {},
        "secret": {"no_log": True},
        "target": {"type": "path"},
        "owner": {"default": "root"},
        "group": {"default": "root"},
        "mode": {},
        "validate": {},
    }
    rules = {
        "mutually_exclusive": [("content", "secret")],
        "required_if": [
            ("state", "file", ("content", "secret"), True),
            ("state", "file", ("mode",)),
            ("state", "directory", ("mode",)),
            ("state", "link", ("target",)),
        ],
    }
    return {
        "files": {"type": "list", "elements": "dict", "required": True, "options": entry, **rules},
        "backup": {"type": "path"},
        "pending": {"type": "path"},
    }


def main() -> None:
    """Run the module."""
    module = Module(argument_spec=argument_spec(), supports_check_mode=True)
    changed: list[str] = []
    diff: list[dict[str, Any]] = []
    pending = Pending(module.params["pending"])
    for entry in module.params["files"]:
        try:
            found = bring(module, entry, pending)
        except (OSError, ValueError) as exc:
            module.fail_json(msg=f"{entry['path']}: {exc}", changed=bool(changed), changed_paths=changed, diff=diff)
        if found:
            changed.append(entry["path"])
            diff += found
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diff)


if __name__ == "__main__":
    main()

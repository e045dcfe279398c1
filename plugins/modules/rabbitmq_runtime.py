#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_runtime
short_description: Bring a running RabbitMQ node to what is declared
version_added: 0.1.0
description:
  - Compares what a node runs with, and what C(rabbitmqctl) can change until the next start, with what is declared; and
    changes it live. Nothing restarts.
  - The files of the node must say the same, or its next start undoes the change.
  - Runs C(rabbitmqctl) on the managed host, as root or C(rabbitmq). What is not declared is left alone.
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Compares and changes nothing.
  diff_mode:
    support: full
    description: Shows each setting that differs.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  memory_limit:
    description: Memory above which publishers are blocked, such as V(4GiB), as C(vm_memory_high_watermark.absolute).
    type: str
  disk_free_limit:
    description: Free disk space below which publishers are blocked, as C(disk_free_limit.absolute).
    type: str
  log_level:
    description: Least severe level that is logged.
    type: str
    choices: [debug, info, notice, warning, error, critical, alert, emergency, none]
  settings:
    description:
      - Whole numbers of C(rabbitmq.conf) that apply to connections and channels to come.
      - The keys are C(collect_statistics_interval), C(consumer_timeout), C(heartbeat) and C(max_message_size).
    type: dict
    default: {}
  untraced_vhosts:
    description: Virtual hosts in which messages are not copied for tracing (C(rabbitmqctl trace_on)).
    type: list
    elements: str
    default: []
seealso:
  - module: celeryops.hybrid.rabbitmq_topology
"""

EXAMPLES = r"""
- name: Undo what was changed by hand in an incident
  celeryops.hybrid.rabbitmq_runtime:
    memory_limit: 4GiB
    disk_free_limit: 2GiB
    log_level: info
    settings:
      max_message_size: 16777216
    untraced_vhosts: [/, celery]
  become: true
"""

RETURN = r"""
differences:
  description: What differed.
  returned: always
  type: list
  elements: dict
  sample:
    - layer: runtime
      kind: setting
      name: memory_limit
      action: update
      actual: '0.001'
      declared: '{absolute,"4GiB"}'
      sentence: 'memory_limit: running 0.001, declared {absolute,"4GiB"}'
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_runtime import (
    LEVELS,
    Node,
    NodeError,
    settings_of,
)


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    return {
        "memory_limit": {"type": "str"},
        "disk_free_limit": {"type": "str"},
        "log_level": {"type": "str", "choices": list(LEVELS)},
        "settings": {"type": "dict", "default": {}},
        "untraced_vhosts": {"type": "list", "elements": "str", "default": []},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    node = Node(module.run_command)
    result: dict[str, Any] = {"changed": False, "differences": []}
    try:
        settings = settings_of(module.params)
        found = node.differences(settings)
        result["differences"] = found
        result["diff"] = {
            "before": {item["name"]: item["actual"] for item in found},
            "after": {item["name"]: item["declared"] for item in found},
        }
        if found and not module.check_mode:
            names = {item["name"] for item in found}
            node.write([setting for setting in settings if setting.name in names])
        result["changed"] = bool(found)
    except (NodeError, ValueError) as exc:
        module.fail_json(msg=f"RabbitMQ: {exc}.", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

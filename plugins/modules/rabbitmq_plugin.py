#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_plugin
short_description: Enable and disable plugins of a RabbitMQ
version_added: 0.1.0
description:
  - Reads once which plugins are enabled, and changes all that differ in one command. A running node loads and unloads
    them at once.
  - Runs C(rabbitmq-plugins) on the managed host, as root or C(rabbitmq).
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Reports, and changes nothing.
  diff_mode:
    support: full
    description: Shows the plugins that are enabled, before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  names:
    description: Plugins.
    type: list
    elements: str
    required: true
  state:
    description: Whether they are enabled or disabled.
    type: str
    choices: [enabled, disabled]
    default: enabled
  prune:
    description: Whether plugins that O(names) does not name are disabled. Plugins that another one needs stay loaded.
    type: bool
    default: false
seealso:
  - module: celeryops.hybrid.rabbitmq_feature_flag
"""

EXAMPLES = r"""
- name: Enable management and shovels
  celeryops.hybrid.rabbitmq_plugin:
    names: [rabbitmq_management, rabbitmq_shovel]
  become: true

- name: Enable management, and nothing else
  celeryops.hybrid.rabbitmq_plugin:
    names: [rabbitmq_management]
    prune: true
  become: true
"""

RETURN = r"""
enabled:
  description: Plugins that were, or would be, enabled.
  returned: always
  type: list
  elements: str
  sample: [rabbitmq_shovel]
disabled:
  description: Plugins that were, or would be, disabled.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_commands import CommandError, output


def listed(names: set[str]) -> str:
    """Return names as ``--diff`` shows them."""
    return "".join(f"{name}\n" for name in sorted(names))


def wanted(before: set[str], names: set[str], state: str, prune: bool) -> set[str]:
    """Return the plugins that are to be enabled."""
    if state == "disabled":
        return before - names
    return names if prune else before | names


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["enabled", "disabled"], "default": "enabled"},
            "prune": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    names = set(module.params["names"])
    if module.params["prune"] and module.params["state"] == "disabled":
        module.fail_json(msg="prune: it disables what 'names' does not name, so that 'state' must be enabled.")
    try:
        # Those that are enabled themselves, not because another one needs them.
        before = set(output(module, "rabbitmq-plugins", "--quiet", "list", "--enabled", "--minimal").split())
        after = wanted(before, names, module.params["state"], module.params["prune"])
        if before != after and not module.check_mode:
            output(module, "rabbitmq-plugins", "--quiet", "set", *sorted(after))
    except CommandError as exc:
        module.fail_json(msg=str(exc), enabled=[], disabled=[])
    module.exit_json(
        changed=before != after,
        enabled=sorted(after - before),
        disabled=sorted(before - after),
        diff={"before": listed(before), "after": listed(after)},
    )


if __name__ == "__main__":
    main()

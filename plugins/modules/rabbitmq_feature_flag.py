#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rabbitmq_feature_flag
short_description: Enable feature flags of a RabbitMQ
version_added: 0.1.0
description:
  - Reads all feature flags once, and enables those that are declared and not enabled. The next version of RabbitMQ
    starts only when the stable flags of the present one are enabled.
  - A flag cannot be disabled again.
  - Runs C(rabbitmqctl) on the managed host, as root or C(rabbitmq).
author:
  - celeryops.hybrid contributors (@celeryops)
attributes:
  check_mode:
    support: full
    description: Reports, and enables nothing.
  diff_mode:
    support: full
    description: Shows the flags that are enabled.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  names:
    description: Flags to be enabled.
    type: list
    elements: str
    default: []
  all_stable:
    description: Whether every stable flag is enabled, as before an upgrade.
    type: bool
    default: false
seealso:
  - module: celeryops.hybrid.rabbitmq_plugin
"""

EXAMPLES = r"""
- name: Enable all stable feature flags, before the package is upgraded
  celeryops.hybrid.rabbitmq_feature_flag:
    all_stable: true
  become: true

- name: Enable one of them
  celeryops.hybrid.rabbitmq_feature_flag:
    names: [stream_queue]
  become: true
"""

RETURN = r"""
enabled:
  description: Flags that were, or would be, enabled.
  returned: always
  type: list
  elements: str
  sample: [stream_queue]
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_commands import CommandError, output


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "all_stable": {"type": "bool", "default": False},
        },
        required_one_of=[("names", "all_stable")],
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False, "enabled": []}
    try:
        columns = ["name", "state", "stability"]
        told = output(module, "rabbitmqctl", "--quiet", "list_feature_flags", *columns, "--formatter", "json")
        flags = {flag["name"]: flag for flag in json.loads(told)}
        if unknown := sorted(set(module.params["names"]) - set(flags)):
            known = ", ".join(sorted(flags))
            module.fail_json(msg=f"names: RabbitMQ has no feature flag {', '.join(unknown)}. It has {known}.", **result)
        stable = {name for name, flag in flags.items() if module.params["all_stable"] and flag["stability"] == "stable"}
        missing = [name for name in sorted({*module.params["names"], *stable}) if flags[name]["state"] != "enabled"]
        result["diff"] = {"before": "", "after": "".join(f"{name}\n" for name in missing)}
        for name in missing if not module.check_mode else ():
            output(module, "rabbitmqctl", "--quiet", "enable_feature_flag", name)
            result["enabled"].append(name)
        result.update(changed=bool(missing), enabled=missing)
    except CommandError as exc:
        module.fail_json(msg=str(exc), **{**result, "changed": bool(result["enabled"])})
    module.exit_json(**result)


if __name__ == "__main__":
    main()

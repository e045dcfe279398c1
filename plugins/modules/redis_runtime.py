#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_runtime
short_description: Bring a running Redis to what is declared
version_added: 0.1.0
description:
  - Compares the settings and the users that a running Redis has with what is declared, in one connection.
  - Changes live what can be changed live, and says what needs a restart. It never restarts.
  - The configuration and the ACL file of the server must say the same, or its next restart undoes the change.
  - Connections of clients stay open, also those of a user that changes.
  - Without O(wait), a server that does not answer is no failure but told in RV(status), so that a host that is about to
    restart or to install its Redis can be compared as well.
author:
  - celeryops.hybrid contributors
extends_documentation_fragment: [celeryops.hybrid.redis_server]
attributes:
  check_mode:
    support: full
    description: Compares and changes nothing.
  diff_mode:
    support: full
    description: Shows each setting that differs, and names each user that does.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  settings:
    description: Settings as they stand in redis.conf.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the setting.
        type: str
        required: true
      value:
        description: Value of the setting.
        type: raw
        required: true
      why:
        description: Reason of the value. Not used here.
        type: str
  users:
    description: ACL users. Every other user of the server is a difference.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user.
        type: str
        required: true
      enabled:
        description: Whether the user can log in.
        type: bool
        default: true
      password:
        description: Password of the user.
        type: str
      rules:
        description: Rules for keys, channels and commands, in Redis' ACL language.
        type: list
        elements: str
        default: []
"""

EXAMPLES = r"""
- name: Compare the running server, and change what can be changed live
  celeryops.hybrid.redis_runtime:
    username: admin
    password: "{{ redis_admin_password }}"
    settings:
      - {name: maxmemory-policy, value: noeviction}
      - {name: appendonly, value: true}
  register: runtime

- name: Restart only for what needs it
  ansible.builtin.systemd_service:
    name: redis-server
    state: restarted
  when: runtime.restart_required
"""

RETURN = r"""
status:
  description:
    - V(ok), V(unreachable), or V(refused) when the server does not take the password or the user lacks a right.
  returned: always
  type: str
message:
  description: What the server said, when RV(status) is not V(ok).
  returned: always
  type: str
differences:
  description: What differed, in sentences without secrets.
  returned: always
  type: list
  elements: str
  sample: ["maxmemory-policy: running 'allkeys-lru', declared 'noeviction'"]
restart_required:
  description: Whether something declared needs a restart of the server.
  returned: always
  type: bool
unseen:
  description: Declared settings that this Redis does not show, so that they cannot be compared.
  returned: always
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import Difference, Runtime
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import (
    RedisError,
    RefusedError,
    UnreachableError,
    client_arguments,
    client_from,
)

REWRITE_SECONDS = 600


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    return {
        **client_arguments(),
        "settings": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "value": {"type": "raw", "required": True},
                "why": {"type": "str"},
            },
        },
        "users": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "enabled": {"type": "bool", "default": True},
                "password": {"type": "str", "no_log": True},
                "rules": {"type": "list", "elements": "str", "default": []},
            },
        },
    }


def diff_of(found: list[Difference]) -> dict[str, Any]:
    """Return the two sides as ``--diff`` shows them; of users only the sentence, because they are secrets."""
    settings = [item for item in found if item.declared]
    return {
        "before": {item.name: item.running for item in settings},
        "after": {item.name: item.declared for item in settings}
        | {f"user {item.name}": item.sentence for item in found if not item.declared},
    }


def wait_for_append_only_file(runtime: Runtime) -> None:
    """Wait until the append-only file that was just switched on holds everything."""
    deadline = time.monotonic() + REWRITE_SECONDS
    while not runtime.append_only_file_is_complete() and time.monotonic() < deadline:
        time.sleep(0.5)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    result: dict[str, Any] = {
        "changed": False,
        "status": "ok",
        "message": "",
        "differences": [],
        "restart_required": False,
        "unseen": [],
    }
    try:
        with client_from(module.params) as client:
            runtime = Runtime(client, module.params["settings"], module.params["users"])
            found = runtime.differences()
            live = [item for item in found if item.live]
            result |= {
                "changed": bool(live),
                "differences": [item.sentence for item in found],
                "restart_required": len(live) < len(found),
                "unseen": runtime.unseen(),
                "diff": diff_of(found),
            }
            if live and not module.check_mode:
                runtime.repair(live)
                if any((item.name, item.declared) == ("appendonly", "yes") for item in live):
                    wait_for_append_only_file(runtime)
    except (RefusedError, UnreachableError) as exc:
        status = "refused" if isinstance(exc, RefusedError) else "unreachable"
        result |= {"status": status, "message": str(exc), "restart_required": True}
        if module.params["wait"]:
            module.fail_json(
                msg=f"{exc}. Redis at {module.params['host']}:{module.params['port']} does not serve its administrator "
                f"{module.params['username']!r}: see its log and its ACL file.",
                **result,
            )
    except (RedisError, ValueError) as exc:
        module.fail_json(msg=f"Redis at {module.params['host']}:{module.params['port']}: {exc}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

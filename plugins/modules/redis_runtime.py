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
  - A server that cannot be reached, or does not let O(username) in, is a failure, unless O(on_failure=report).
author:
  - celeryops.hybrid contributors (@celeryops)
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
    description:
      - Settings as they stand in redis.conf. The server refuses what it does not know before anything is changed.
      - A server that may evict keys is refused, whether it is declared so or runs so, unless O(allow_eviction).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the setting.
        type: str
        required: true
      value:
        description:
          - Value of the setting. V(true) and V(false) are C(yes) and C(no); a list is its items with blanks between.
          - The values of C(masterauth), C(primaryauth), C(requirepass) and the C(-pass) settings of TLS are never shown
            or logged.
        type: raw
        required: true
      why:
        description: Reason of the value. Not used here.
        type: str
  users:
    description:
      - ACL users. Others are left alone unless O(prune_users).
    type: list
    elements: dict
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
  prune_users:
    description:
      - Whether every user that O(users) does not name is a difference and is deleted. O(username) must be among these.
    type: bool
    default: false
  allow_eviction:
    description:
      - Whether the server may delete keys when its memory is full. A broker that may do so deletes queued tasks.
    type: bool
    default: false
  on_failure:
    description:
      - What happens when the server cannot be reached, or refuses the login. V(report) is not a failure; RV(status) and
        RV(message) tell it, and RV(restart_required) is true. It is for a role that has written the files of the server
        before and restarts it anyway.
    type: str
    choices: [fail, report]
    default: fail
  config_file:
    description:
      - The configuration file of the server, on the managed host. With it every other setting of the server is compared
        as well, with what a start from this file would give, and brought to it. For that a second server is started
        from the file, without a port and without data, and ended at once.
      - A server that was made a replica by hand is made a master again.
      - A file that is missing, or with which no server starts, is told in a warning.
    type: path
  config_user:
    description: Account that runs the second server.
    type: str
    default: redis
  rewrite:
    description:
      - Whether a live change is also written into the server's own files (C(CONFIG REWRITE), C(ACL SAVE)), for a server
        whose files nothing else manages. What needs a restart cannot be written so.
    type: bool
    default: false
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

- name: Declare all users of a server that nobody templates, delete others, and let it keep them
  celeryops.hybrid.redis_runtime:
    username: admin
    password: "{{ redis_admin_password }}"
    users:
      - {name: default, enabled: false}
      - {name: admin, password: "{{ redis_admin_password }}", rules: ['~*', '&*', +@all]}
      - {name: dashboard, password: "{{ dashboard_password }}", rules: ['~*', -@all, +@read, +info, -@dangerous]}
    prune_users: true
    rewrite: true

- name: Add one user, and leave all others alone
  celeryops.hybrid.redis_runtime:
    username: admin
    password: "{{ redis_admin_password }}"
    users:
      - {name: exporter, password: "{{ exporter_password }}", rules: [-@all, +info, +ping]}

- name: Look over TLS what would change, at an address that the certificate does not name
  celeryops.hybrid.redis_runtime:
    host: 10.0.0.11
    port: 6380
    tls: true
    server_hostname: broker1.example.com
    ca_path: /etc/ssl/private-ca.pem
    username: admin
    password: "{{ redis_admin_password }}"
    settings:
      - {name: maxmemory, value: 4gb}
  check_mode: true
"""

RETURN = r"""
status:
  description:
    - V(ok), V(unreachable), or V(refused) when the server does not take the password or the user lacks a right. The
      last two are failures unless O(on_failure=report).
  returned: always
  type: str
  sample: ok
message:
  description: What the server said, when RV(status) is not V(ok).
  returned: always
  type: str
  sample: WRONGPASS invalid username-password pair or user is disabled.
differences:
  description: What differed, settings before users. Secrets are masked.
  returned: always
  type: list
  elements: dict
  contains:
    layer:
      description: V(runtime) for a setting, V(object) for a user.
      type: str
    kind:
      description: V(setting) or V(user).
      type: str
    name:
      description: Name of the setting or the user.
      type: str
    action:
      description:
        - V(create), V(update) or V(delete), done in the running server.
        - V(restart) for a setting that the server takes only from its file when it starts.
      type: str
    actual:
      description:
        - What the server has. Of a setting its value, of a user a dictionary (C(enabled), C(password), C(keys),
          C(channels), C(commands)), of what is missing nothing.
      type: raw
    declared:
      description: What it should have, in the same form.
      type: raw
    sentence:
      description: All of it in one line.
      type: str
  sample:
    - layer: runtime
      kind: setting
      name: maxmemory-policy
      action: update
      actual: allkeys-lru
      declared: noeviction
      sentence: "maxmemory-policy: running 'allkeys-lru', declared 'noeviction'"
    - layer: object
      kind: user
      name: dashboard
      action: update
      actual: {enabled: true, password: another, keys: ['~*'], channels: [], commands: [-@all, +@read, +flushall]}
      declared: {enabled: true, password: set, keys: ['~*'], channels: [], commands: [-@all, +@read]}
      sentence: user dashboard has another password and has +flushall
restart_required:
  description: Whether something declared needs a restart of the server.
  returned: always
  type: bool
  sample: false
unseen:
  description: Declared lines that are not settings (such as C(include)), so that they cannot be compared.
  returned: always
  type: list
  elements: str
  sample: []
rewritten:
  description: Whether the server has written its files.
  returned: always
  type: bool
  sample: false
"""

import time
from dataclasses import asdict
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import Runtime, SettingDifference, secret_values
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import (
    RedisError,
    RefusedError,
    UnreachableError,
    client_arguments,
    client_from,
)
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_fresh import NoStartError, fresh_settings

REWRITE_SECONDS = 600


def argument_spec() -> dict[str, Any]:
    """Return the options of the module."""
    return {
        **client_arguments(),
        "allow_eviction": {"type": "bool", "default": False},
        "config_file": {"type": "path"},
        "config_user": {"type": "str", "default": "redis"},
        "prune_users": {"type": "bool", "default": False},
        "on_failure": {"type": "str", "choices": ["fail", "report"], "default": "fail"},
        "rewrite": {"type": "bool", "default": False},
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
            "options": {
                "name": {"type": "str", "required": True},
                "enabled": {"type": "bool", "default": True},
                "password": {"type": "str", "no_log": True},
                "rules": {"type": "list", "elements": "str", "default": []},
            },
        },
    }


def diff_of(found: list[SettingDifference]) -> dict[str, Any]:
    """Return the two sides as ``--diff`` shows them, each with what it has."""
    sides = {
        "before": {f"{item.kind} {item.name}": item.actual for item in found},
        "after": {f"{item.kind} {item.name}": item.declared for item in found},
    }
    return {side: {name: value for name, value in items.items() if value is not None} for side, items in sides.items()}


def check_users(parameters: dict[str, Any]) -> None:
    """Refuse to delete the user that does the deleting."""
    names = {user["name"] for user in parameters["users"] or ()}
    if parameters["prune_users"] and parameters["username"] not in names:
        raise ValueError(
            f"'users' does not name {parameters['username']!r}, the user of this login, which would delete itself: "
            "declare it too"
        )


def _why(error: Exception, where: str, username: str) -> str:
    """Return the message of a failure, with what to look at."""
    if isinstance(error, RefusedError):
        remedy = f"Check 'username' and 'password', and that the ACL file of the server lets {username!r} administrate"
    else:
        remedy = "Check 'host', 'port' and 'tls', and that the server runs"
    return f"Redis at {where} does not serve its administrator {username!r}: {error}. {remedy}."


def fresh(module: Module) -> dict[str, str] | None:
    """Return the settings that a start from the server's file gives, as far as that is known."""
    file = module.params["config_file"]
    if not file:
        return None
    try:
        return fresh_settings(file, module.params["config_user"])
    except NoStartError as exc:
        module.warn(f"Settings that are not declared are not compared: no server starts with {file}: {exc}")
        return None


def wait_for_append_only_file(runtime: Runtime) -> None:
    """Wait until the append-only file that was just switched on holds everything."""
    deadline = time.monotonic() + REWRITE_SECONDS
    while not runtime.append_only_file_is_complete() and time.monotonic() < deadline:
        time.sleep(0.5)


def main() -> None:
    """Run the module."""
    module = Module(argument_spec=argument_spec(), supports_check_mode=True, secrets=secret_values)
    where = f"{module.params['host']}:{module.params['port']}"
    result: dict[str, Any] = {
        "changed": False,
        "status": "ok",
        "message": "",
        "differences": [],
        "restart_required": False,
        "unseen": [],
        "rewritten": False,
    }
    try:
        check_users(module.params)
        with client_from(module.params) as client:
            options = (module.params[name] for name in ("settings", "users", "allow_eviction"))
            runtime = Runtime(client, *options, fresh=fresh(module), prune_users=module.params["prune_users"])
            runtime.check()
            found = runtime.differences()
            live = [item for item in found if item.live]
            result |= {
                "differences": [asdict(item) for item in found],
                "restart_required": len(live) < len(found),
                "unseen": runtime.unseen(),
                "diff": diff_of(found),
            }
            if live and module.params["rewrite"]:
                runtime.check_rewrite()
            if live and not module.check_mode and runtime.repair(live):
                result["restart_required"] = True
            result["changed"] = bool(live)
            if live and not module.check_mode:
                if any((item.name, item.declared) == ("appendonly", "yes") for item in live):
                    wait_for_append_only_file(runtime)
                if module.params["rewrite"]:
                    runtime.rewrite()
                    result["rewritten"] = True
    except (RefusedError, UnreachableError) as exc:
        status = "refused" if isinstance(exc, RefusedError) else "unreachable"
        result |= {"status": status, "message": str(exc), "restart_required": True}
        if module.params["on_failure"] == "fail":
            module.fail_json(msg=_why(exc, where, module.params["username"]), **result)
    except (RedisError, ValueError) as exc:
        module.fail_json(msg=f"Redis at {where}: {exc}.", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

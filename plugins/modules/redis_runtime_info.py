#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_runtime_info
short_description: Read what a running Redis has
version_added: 0.1.0
description:
  - Reads settings, users, memory, persistence and clients of a running Redis or Valkey, in one connection.
  - Users come without passwords and their hashes, settings without secrets.
  - O(username) needs the commands C(INFO), C(CONFIG GET) and C(ACL LIST).
author:
  - celeryops.hybrid contributors (@celeryops)
extends_documentation_fragment: [celeryops.hybrid.redis_server]
attributes:
  check_mode:
    support: full
    description: Reads, and changes nothing.
  diff_mode:
    support: none
    description: There is nothing to differ.
  idempotent:
    support: full
    description: Changes nothing.
seealso:
  - module: celeryops.hybrid.redis_runtime
"""

EXAMPLES = r"""
- name: Read what the broker has
  celeryops.hybrid.redis_runtime_info:
    username: admin
    password: "{{ redis_admin_password }}"
  register: broker

- name: Stop when publishers will soon be refused, or tasks would not survive a restart
  ansible.builtin.assert:
    that:
      - broker.memory.used_bytes < 0.8 * broker.memory.limit_bytes
      - broker.persistence.append_only_file
      - broker.persistence.last_write_ok
"""

RETURN = r"""
server:
  description: Who answers.
  returned: always
  type: dict
  contains:
    name:
      description: V(redis) or V(valkey).
      type: str
    version:
      description: Its own version.
      type: str
    compatible_with:
      description: Version of Redis whose protocol it speaks; of a Redis its own.
      type: str
    uptime_seconds:
      description: Seconds since it started.
      type: int
    config_file:
      description: File that it was started with; empty for none.
      type: str
    role:
      description: V(master) or V(slave).
      type: str
    connected_replicas:
      description: Number of replicas.
      type: int
  sample:
    name: valkey
    version: 8.1.1
    compatible_with: 7.2.4
    uptime_seconds: 86400
    config_file: /etc/valkey/valkey.conf
    role: master
    connected_replicas: 0
config:
  description: Every setting, as C(CONFIG GET) shows it; one that is a secret is V(set) or empty.
  returned: always
  type: dict
  sample: {appendonly: "yes", maxmemory-policy: noeviction}
users:
  description: Every ACL user.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the user.
      type: str
    enabled:
      description: Whether the user can log in.
      type: bool
    password:
      description: V(set), V(none) when nothing lets the user in, or V(none is asked for) when anything does.
      type: str
    keys:
      description: Patterns of keys.
      type: list
      elements: str
    channels:
      description: Patterns of channels.
      type: list
      elements: str
    commands:
      description: Rules for commands, in their order.
      type: list
      elements: str
    others:
      description: Flags and selectors, if there are any.
      type: list
      elements: str
  sample:
    - name: default
      enabled: false
      password: none
      keys: []
      channels: []
      commands: [-@all]
memory:
  description: Memory, in bytes.
  returned: always
  type: dict
  contains:
    used_bytes:
      description: Bytes in use.
      type: int
    peak_bytes:
      description: Most bytes in use since the start.
      type: int
    resident_bytes:
      description: Bytes that the operating system has given to it.
      type: int
    limit_bytes:
      description: The setting maxmemory; V(0) is none.
      type: int
    policy:
      description: The setting maxmemory-policy.
      type: str
    may_evict:
      description: Whether it may delete keys when its memory is full.
      type: bool
    evicted_keys:
      description: Keys that it has deleted so since its start.
      type: int
  sample:
    used_bytes: 1048576
    peak_bytes: 2097152
    resident_bytes: 8388608
    limit_bytes: 4294967296
    policy: noeviction
    may_evict: false
    evicted_keys: 0
persistence:
  description: What survives a restart.
  returned: always
  type: dict
  contains:
    loading:
      description: Whether it still reads its data.
      type: bool
    append_only_file:
      description: Whether it writes an append-only file.
      type: bool
    fsync:
      description: The setting appendfsync.
      type: str
    last_write_ok:
      description: Whether the last write to the append-only file worked. While it did not, publishers are refused.
      type: bool
    last_rewrite_ok:
      description: Whether the last rewrite of the append-only file worked.
      type: bool
    rewrite_in_progress:
      description: Whether the append-only file is being rewritten.
      type: bool
    delayed_fsyncs:
      description: How often a flush to the disk took so long that writes waited for it.
      type: int
    last_snapshot_ok:
      description: Whether the last snapshot worked.
      type: bool
    last_snapshot:
      description: When the last snapshot was written, in seconds of Unix time.
      type: int
    changes_since_snapshot:
      description: Changes that no snapshot has.
      type: int
    last_fork_microseconds:
      description: How long the last fork, for a rewrite or a snapshot, stopped everything.
      type: int
  sample:
    loading: false
    append_only_file: true
    fsync: everysec
    last_write_ok: true
    last_rewrite_ok: true
    rewrite_in_progress: false
    delayed_fsyncs: 0
    last_snapshot_ok: true
    last_snapshot: 1767225600
    changes_since_snapshot: 17
    last_fork_microseconds: 350
clients:
  description: Connections.
  returned: always
  type: dict
  contains:
    connected:
      description: Connections now, those of replicas not counted.
      type: int
    blocked:
      description: Those that wait, as workers without a task do.
      type: int
    limit:
      description: The setting maxclients.
      type: int
    rejected:
      description: Connections refused since the start, because the limit was reached.
      type: int
    refused_logins:
      description: Logins refused since the start. None where the server does not count them.
      type: int
    refused_commands:
      description: Commands, keys and channels refused by ACL since the start. None where it does not count them.
      type: int
  sample: {connected: 42, blocked: 8, limit: 10000, rejected: 0, refused_logins: 0, refused_commands: 0}
databases:
  description: Number of keys of each database that has any.
  returned: always
  type: dict
  sample: {"0": 12}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import read_everything
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import (
    RedisError,
    UnreachableError,
    client_arguments,
    client_from,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=client_arguments(), supports_check_mode=True)
    try:
        with client_from(module.params) as client:
            found = read_everything(client)
    except (RedisError, UnreachableError, ValueError) as exc:
        module.fail_json(msg=f"Redis at {module.params['host']}:{module.params['port']}: {exc}.")
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()

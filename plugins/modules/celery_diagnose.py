#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_diagnose
short_description: Read what a host of a Celery deployment can tell in an incident
version_added: 0.1.0
author:
  - celeryops.hybrid contributors (@celeryops)
description:
  - Reads, side by side, everything that one host knows. Celery's workers through remote control, queues and
    unacknowledged messages in Redis, Redis and RabbitMQ as their administrators see them, units, journals, and
    connections with the processes that hold them.
  - The playbook C(celeryops.hybrid.diagnose) runs it on every host and makes findings of what all say together.
  - Never fails. What cannot be read is in RV(errors), because that is the time in which this is used. Everything
    has an end in some seconds.
  - Secrets are masked, and arguments of tasks are left out.
attributes:
  check_mode:
    description: Can run in check mode, and then does the same, because it changes nothing.
    support: full
  diff_mode:
    description: Shows differences in diff mode.
    support: none
    details: There is nothing to differ.
  idempotent:
    description: When run twice in a row with the same arguments, the second run changes nothing.
    support: full
options:
  worker:
    description: How Celery's side is read. Without it, it is not.
    type: dict
    suboptions:
      python:
        description: The workers' Python, in which C(celery-hybrid) is installed.
        type: path
        default: /opt/celery/venv/bin/python
      user:
        description: The account of the workers.
        type: str
        default: celery
      environment_file:
        description: The workers' environment file.
        type: path
        default: /etc/celery/celery.env
      config_module:
        description: The configuration module, as in E(CELERY_CONFIG_MODULE).
        type: str
        default: celeryconfig
      python_path:
        description: Directories to import from, as in E(PYTHONPATH) of the workers' unit.
        type: list
        elements: path
        default: [/etc/celery]
      nodes:
        description: Node names that are asked for everything, beside those that are not declared.
        type: list
        elements: str
        default: []
      others:
        description: Node names that another host asks for everything.
        type: list
        elements: str
        default: []
      timeout:
        description: Seconds that connecting, or one answer, may take.
        type: float
        default: 2
      limit:
        description: Seconds after which the reading is stopped; what it has read until then is kept.
        type: float
        default: 12
  redis:
    description: How to ask Redis as its administrator. Without it, it is not asked.
    type: dict
    suboptions:
      host:
        description: Name or address.
        type: str
        default: 127.0.0.1
      port:
        description: TCP port.
        type: int
        default: 6379
      username:
        description: ACL user with the rights of an administrator.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      tls:
        description: Whether the port speaks TLS.
        type: bool
        default: false
      server_hostname:
        description: Name or address that the certificate must be for. Without it, O(redis.host).
        type: str
      ca_path:
        description: File with the CA certificate.
        type: path
      client_cert:
        description: File with the certificate to show.
        type: path
      client_key:
        description: File with its key.
        type: path
  rabbitmq:
    description: How to ask RabbitMQ's management API. Without it, it is not asked.
    type: dict
    suboptions:
      url:
        description: Base URL.
        type: str
        default: http://127.0.0.1:15672
      username:
        description: A user with the tag C(monitoring).
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
  units:
    description: Names or patterns of systemd units.
    type: list
    elements: str
    default: []
  log_files:
    description: Names or patterns of log files.
    type: list
    elements: path
    default: []
  lines:
    description: How many lines of each journal and log are kept.
    type: int
    default: 50
  ports:
    description: Connections from this host to these ports are listed with their processes.
    type: list
    elements: int
    default: []
requirements:
  - Python 3.9 on the host
  - celery-hybrid in the workers' virtual environment, for O(worker)
"""

EXAMPLES = r"""
- name: Read what this worker host knows
  celeryops.hybrid.celery_diagnose:
    worker:
      nodes: [default@worker1]
    units: ['celery-worker@*.service', celery-beat.service]
    ports: [6379, 5672]
  become: true
  register: known

- name: Show which nodes answer
  ansible.builtin.debug:
    msg: "{{ known.worker.workers.heard }}"
"""

RETURN = r"""
errors:
  description: For each source that could not be read, why.
  returned: always
  type: dict
  sample: {redis: "Redis at 10.0.0.11:6379 cannot be reached: [Errno 111] Connection refused"}
now:
  description: Seconds of Unix time by the clock of this host.
  returned: always
  type: float
seconds:
  description: How long reading took.
  returned: always
  type: float
worker:
  description: What C(python -m celery_hybrid.diagnose) printed, part by part.
  returned: when it could be run
  type: dict
redis:
  description: Parts of C(INFO), C(CONFIG GET), C(CLIENT LIST) and C(SLOWLOG GET).
  returned: when Redis answers
  type: dict
rabbitmq:
  description: Overview, nodes, connections, channels and queues.
  returned: when RabbitMQ answers
  type: dict
units:
  description: State and journal of each unit.
  returned: always
  type: list
  elements: dict
logs:
  description: The end of each log file.
  returned: always
  type: dict
addresses:
  description: Addresses of this host.
  returned: always
  type: list
  elements: str
sockets:
  description: Connections from this host to O(ports), with the process and unit of those that belong to workers.
  returned: always
  type: list
  elements: dict
  sample:
    - {local: "10.0.0.13:41234", remote: "10.0.0.11:6379", pid: 812, unit: celery-worker@default.service}
"""

from ansible_collections.celeryops.hybrid.plugins.module_utils._diagnose import read_host
from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import client_arguments

_WORKER = {
    "python": {"type": "path", "default": "/opt/celery/venv/bin/python"},
    "user": {"type": "str", "default": "celery"},
    "environment_file": {"type": "path", "default": "/etc/celery/celery.env"},
    "config_module": {"type": "str", "default": "celeryconfig"},
    "python_path": {"type": "list", "elements": "path", "default": ["/etc/celery"]},
    "nodes": {"type": "list", "elements": "str", "default": []},
    "others": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "float", "default": 2},
    "limit": {"type": "float", "default": 12},
}
_RABBITMQ = {
    "url": {"type": "str", "default": "http://127.0.0.1:15672"},
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
}
ARGUMENTS = {
    "worker": {"type": "dict", "options": _WORKER},
    "redis": {
        "type": "dict",
        "options": {
            name: {key: value for key, value in option.items() if key != "aliases"}
            for name, option in client_arguments().items()
            if name != "wait"
        },
    },
    "rabbitmq": {"type": "dict", "options": _RABBITMQ},
    "units": {"type": "list", "elements": "str", "default": []},
    "log_files": {"type": "list", "elements": "path", "default": []},
    "lines": {"type": "int", "default": 50},
    "ports": {"type": "list", "elements": "int", "default": []},
}


def main() -> None:
    """Run the module."""
    module = Module(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.exit_json(changed=False, **read_host(module.params, module.no_log_values.update))


if __name__ == "__main__":
    main()

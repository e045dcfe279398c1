#!/usr/bin/python
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_verify
short_description: Prove that Celery tasks go through Redis and results through RabbitMQ
version_added: 0.1.0
author:
  - celeryops.hybrid contributors (@celeryops)
description:
  - Runs on a worker host and answers, check by check, whether the deployment does what it is declared to do.
    Servers, rights, topology, the settings of the file and of every live worker of the application, and a task that
    really runs.
  - The checks run in the worker's own Python, as the worker's user, with the worker's environment and configuration.
    They are those of C(python -m celery_hybrid.verify), which can be run by hand as well.
  - All checks run, then the module fails with the reason and a remedy for each that failed. One that could not run,
    because one that it needs had failed, counts as failed.
  - The names of the checks are stable; C(python -m celery_hybrid.verify --names) lists them.
  - Nothing that lasts is changed. A canary, the built-in task C(celery.accumulate), is sent to each queue. Its result
    stays in RabbitMQ's streams, marked as forgotten, until they drop it (C(max-age)). The reply queue of the
    verification expires by itself after 30 minutes. In Redis nothing stays.
  - No secret is put in an argument, an output or a log.
attributes:
  check_mode:
    description: Can run in check mode, and then does the same, the canaries included, because it changes nothing.
    support: full
  diff_mode:
    description: Shows differences in diff mode.
    support: none
    details: There is nothing to differ.
  idempotent:
    description: When run twice in a row with the same arguments, the second run changes nothing.
    support: full
options:
  app:
    description:
      - The application, as for C(celery -A).
      - Without it the configuration module alone is verified, and the application is not imported.
    type: str
  python:
    description: The workers' Python, in which C(celery-hybrid) is installed.
    type: path
    default: /opt/celery/venv/bin/python
  user:
    description: The account of the workers.
    type: str
    default: celery
  environment_file:
    description:
      - The workers' environment file, which holds the URLs with their passwords, and which only root can read.
      - systemd reads it, as it does for the workers.
    type: path
    default: /etc/celery/celery.env
  environment:
    description: More environment variables. No secrets, as the host's users can read them while the checks run.
    type: dict
    default: {}
  config_module:
    description: The configuration module, as in E(CELERY_CONFIG_MODULE).
    type: str
    default: celeryconfig
  python_path:
    description: Directories to import from, as in E(PYTHONPATH) of the workers' unit.
    type: list
    elements: path
    default: [/etc/celery]
  queues:
    description: Queues that get a canary each. When empty, all queues that the configuration declares.
    type: list
    elements: str
    default: []
  nodes:
    description: Node names, such as V(default@worker1), that must answer. When empty, at least one worker must.
    type: list
    elements: str
    default: []
  expected:
    description:
      - Settings and the values that they must have, over the house rules.
      - "The house rules: JSON only, UTC, V(task_acks_late=true), V(worker_prefetch_multiplier=1), results that expire,
        a pool of broker connections, a C(visibility_timeout) above C(task_time_limit), and a result backend
        of C(celery-hybrid)."
    type: dict
    default: {}
  broker_facts:
    description:
      - What Redis says of itself to its administrator, because a worker's user may not ask.
      - C(playbooks/verify.yml) gathers it.
    type: dict
    suboptions:
      host:
        description: Whom it was asked of.
        type: str
      maxmemory_policy:
        description: As in C(INFO memory).
        type: str
      maxclients:
        description: As in C(INFO clients).
        type: str
      connected_clients:
        description: As in C(INFO clients).
        type: str
      error:
        description: Why it is not known.
        type: str
  results_facts:
    description:
      - What the management API of RabbitMQ says of the virtual host, because AMQP does not tell it.
      - C(playbooks/verify.yml) gathers it.
    type: dict
    suboptions:
      host:
        description: Whom it was asked of.
        type: str
      exchanges:
        description: The answer of C(/api/exchanges/VHOST).
        type: list
        elements: dict
      queues:
        description: The answer of C(/api/queues/VHOST).
        type: list
        elements: dict
      bindings:
        description: The answer of C(/api/bindings/VHOST).
        type: list
        elements: dict
      policies:
        description: The answer of C(/api/policies/VHOST).
        type: list
        elements: dict
      nodes:
        description: The answer of C(/api/nodes).
        type: list
        elements: dict
      overview:
        description: The answer of C(/api/overview).
        type: dict
      error:
        description: Why it is not known.
        type: str
  letters:
    description:
      - A user of RabbitMQ who may read the dead letters, as the user C(letters) of the RabbitMQ role may.
      - With it a pickled task is sent to each queue, must be refused, and its dead letter is removed again.
      - Without it that check is left out, and RV(skipped_reasons) says what would let it.
    type: dict
    suboptions:
      user:
        description: Name of the user.
        type: str
        default: letters
      password:
        description: Password of the user.
        type: str
      reason:
        description: Why this host leaves the check out; another one makes it, for example.
        type: str
  skip:
    description:
      - Checks to leave out, by name; a name without its bracket means the check of every queue.
      - They are listed in RV(skipped_checks) and not counted.
    type: list
    elements: str
    default: []
  connect_timeout:
    description: Seconds that connecting to a server, or one command, may take.
    type: float
    default: 5
  inspect_timeout:
    description: Seconds in which live workers must answer.
    type: float
    default: 5
  canary_timeout:
    description: Seconds that a task may take from being sent to its result.
    type: float
    default: 15
  timeout:
    description: Seconds after which all checks are stopped.
    type: float
    default: 120
requirements:
  - Python 3.9 on the worker host
  - celery-hybrid in the workers' virtual environment
"""

EXAMPLES = r"""
- name: Verify this worker host
  celeryops.hybrid.celery_verify:
    app: payments
  become: true

- name: Verify two queues, and that both workers are alive
  celeryops.hybrid.celery_verify:
    app: payments
    queues: [celery, reports]
    nodes: [default@worker1, reports@worker1]
    expected:
      result_expires: 86400
      task_time_limit: 600
  become: true
  register: verified
  failed_when: false

- name: Show the table
  ansible.builtin.debug:
    msg: "{{ verified.table }}"
"""

RETURN = r"""
checks:
  description: All checks, in the order in which they ran.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Stable name of the check.
      type: str
      sample: canary.archive[celery]
    ok:
      description: Whether the rule holds.
      type: bool
      sample: true
    expected:
      description: The rule.
      type: str
      sample: "celery.results.9 holds the result: application/json, persistent, and can be read again"
    actual:
      description: What was found.
      type: str
      sample: "celery.results.9 offset 41: application/json, in a stream, 312 bytes, read twice"
    remedy:
      description: What to do; empty when the rule holds.
      type: str
      sample: ""
    milliseconds:
      description: How long finding out took.
      type: float
      sample: 8.4
    blocked:
      description: It was not run, because one that it needs had failed; it counts as failed.
      type: bool
      sample: false
skipped_checks:
  description: Names of the checks that were left out as asked.
  returned: always
  type: list
  elements: str
  sample: []
skipped_reasons:
  description: Why a check was left out without a request to leave it out, by its name.
  returned: always
  type: dict
  sample: {}
summary:
  description: How many checks there were.
  returned: always
  type: dict
  contains:
    checks:
      description: All.
      type: int
      sample: 37
    passed:
      description: Those whose rule holds.
      type: int
      sample: 37
    failed:
      description: Those whose rule does not hold, or that could not run.
      type: int
      sample: 0
table:
  description: The checks as text, one a line.
  returned: always
  type: str
  sample: "ok      broker.reachable  1.2 ms  10.0.0.11:6379"
"""

from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module
from ansible_collections.celeryops.hybrid.plugins.module_utils._verify import verify

_RESULTS = ("exchanges", "queues", "bindings", "policies", "nodes")
ARGUMENTS = {
    "app": {"type": "str"},
    "python": {"type": "path", "default": "/opt/celery/venv/bin/python"},
    "user": {"type": "str", "default": "celery"},
    "environment_file": {"type": "path", "default": "/etc/celery/celery.env"},
    "environment": {"type": "dict", "default": {}},
    "config_module": {"type": "str", "default": "celeryconfig"},
    "python_path": {"type": "list", "elements": "path", "default": ["/etc/celery"]},
    "queues": {"type": "list", "elements": "str", "default": []},
    "nodes": {"type": "list", "elements": "str", "default": []},
    "expected": {"type": "dict", "default": {}},
    "broker_facts": {
        "type": "dict",
        "options": {
            name: {"type": "str"} for name in ("host", "maxmemory_policy", "maxclients", "connected_clients", "error")
        },
    },
    "results_facts": {
        "type": "dict",
        "options": {
            **{name: {"type": "str"} for name in ("host", "error")},
            **{name: {"type": "list", "elements": "dict"} for name in _RESULTS},
            "overview": {"type": "dict"},
        },
    },
    "letters": {
        "type": "dict",
        "options": {
            "user": {"type": "str", "default": "letters"},
            "password": {"type": "str", "no_log": True},
            "reason": {"type": "str"},
        },
    },
    "skip": {"type": "list", "elements": "str", "default": []},
    "connect_timeout": {"type": "float", "default": 5},
    "inspect_timeout": {"type": "float", "default": 5},
    "canary_timeout": {"type": "float", "default": 15},
    "timeout": {"type": "float", "default": 120},
}


def main() -> None:
    """Run the module."""
    module = Module(argument_spec=ARGUMENTS, supports_check_mode=True)
    outcome = verify(module.params, hide=module.no_log_values.update)
    result = {
        "changed": False,
        "checks": outcome.checks,
        "skipped_checks": list(outcome.skipped),
        "skipped_reasons": {name: why for name, why in outcome.skipped.items() if why},
        "summary": outcome.summary(),
        "table": outcome.table(),
    }
    if not outcome.ok:
        module.fail_json(msg=outcome.message(), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis
short_description: Make findings of what the hosts of a deployment said
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Puts together what the module M(celeryops.hybrid.celery_diagnose) read on each host, and says what is wrong in plain
    words.
options:
  _input:
    description: What the module returned on each host; one that could not be asked has C(unreachable) or C(failed).
    type: dict
    required: true
  nodes:
    description: Node names of the workers that each host declares.
    type: dict
    required: true
  redis:
    description: Hosts of Redis.
    type: list
    elements: str
    default: []
  rabbitmq:
    description: Hosts of RabbitMQ.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ (said | celeryops.hybrid.diagnosis({'worker1': ['default@worker1']}, ['broker1'], ['results1'])).text }}"
"""

RETURN = r"""
_value:
  description: C(text) for people, C(bundle) for machines, and C(findings), the identifiers of what was found.
  type: dict
"""

from datetime import datetime, timezone

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose import Picture
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose_report import bundle, report
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose_symptoms import findings


def diagnosis(said, nodes, redis=(), rabbitmq=()):
    picture = Picture(said, nodes, redis, rabbitmq)
    found = findings(picture)
    at = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")  # noqa: UP017
    return {
        "at": at,
        "findings": [finding.id for finding in found],
        "text": report(picture, found),
        "bundle": bundle(picture, found, at),
    }


class FilterModule:
    """The filter diagnosis."""

    def filters(self):
        return {"diagnosis": diagnosis}

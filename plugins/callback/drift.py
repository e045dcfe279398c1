# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: drift
short_description: Report what is not as declared
version_added: 0.1.0
type: notification
author:
  - celeryops.hybrid contributors (@celeryops)
description:
  - Collects what the tasks of the playbook C(celeryops.hybrid.drift) would change, and ends the run with a
    table for people and, if wanted, with a JSON file and a file of metrics.
  - The exit code of C(ansible-playbook) is then 0 when all is as declared, 3 when something has drifted, and
    Ansible's own (2 a host failed, 4 a host is unreachable) when not everything could be looked at.
  - Other playbooks are left alone, so that it can be enabled for good.
requirements:
  - enable in C(callbacks_enabled) of ansible.cfg or in E(ANSIBLE_CALLBACKS_ENABLED), as V(celeryops.hybrid.drift)
options:
  report_json:
    description:
      - File for the report as JSON, on the control node. Written whole or not at all.
      - The extra variable C(drift_report_json) comes first.
    type: path
    env:
      - name: CELERYOPS_DRIFT_REPORT_JSON
    ini:
      - section: callback_drift
        key: report_json
  report_metrics:
    description:
      - File for metrics in the text format of Prometheus, for the text collector of the node exporter; its name must
        end with C(.prom).
      - The extra variable C(drift_report_metrics) comes first.
    type: path
    env:
      - name: CELERYOPS_DRIFT_REPORT_METRICS
    ini:
      - section: callback_drift
        key: report_metrics
"""

import datetime
import json
import sys
import time
import typing as t

from ansible.playbook.handler import Handler
from ansible.plugins.callback import CallbackBase
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._drift import (
    CLEAN,
    DRIFT,
    Report,
    findings,
    write_atomically,
)


class CallbackModule(CallbackBase):
    """Reports what a look in check mode has found."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "celeryops.hybrid.drift"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self._report = Report()
        self._begun = time.time()
        self._extra: t.Mapping[str, t.Any] = {}
        # Whether the playbook checks for drift at all, and whether the present play is.
        self._looks = self._looking = False

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        """See whether this play looks for drift."""
        self._looking = "drift_check_mode" in play.vars
        self._looks = self._looks or self._looking
        self._extra = play.get_variable_manager().extra_vars

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Collect what a task found; the items of a loop come one by one."""
        if "results" not in result._result or result._task.loop is None:
            self._collect(result)

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        """Collect what an item of a loop found."""
        self._collect(result)

    def _collect(self, result: t.Any) -> None:
        if not self._looking:
            return
        task, told, host = result._task, result._result, result._host.get_name()
        self._report.hosts[host].looked = True
        arguments = result._task_fields.get("args") or {}
        if isinstance(task, Handler):
            if told.get("changed"):
                self._report.hosts[host].consequences.append(f"{task.name.lower()} {arguments.get('name', '')}".strip())
        # A sentence that only announces what a handler will do is not a finding.
        elif not (task.notify and isinstance(told.get("msg"), str) and told.get("changed")):
            self._report.add(host, findings(task.action, task.name, arguments, told))

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """Remember why a host could not be looked at to the end."""
        if self._looking and not ignore_errors:
            reason = result._result.get("msg") or result._result.get("censored") or "no reason given"
            self._report.hosts[result._host.get_name()].problem = f"{result._task.name}: {reason}"

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """Remember that a host could not be reached."""
        if self._looking:
            host = self._report.hosts[result._host.get_name()]
            host.problem, host.unreachable = f"unreachable: {result._result.get('msg', 'no answer')}", True

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Write the reports, and end with the code that says how it went."""
        if not self._looks:
            return
        report, now = self._report, time.time()
        seconds = now - self._begun
        # Control nodes may run Python 3.10.
        finished = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(timespec="seconds")  # noqa: UP017
        self._display.banner("DRIFT REPORT")
        self._display.display(report.table())
        files = (
            ("report_json", lambda: json.dumps(report.data(finished, seconds), indent=2) + "\n"),
            ("report_metrics", lambda: report.metrics(now, seconds)),
        )
        unwritten = False
        for name, text in files:
            path = self._extra.get(f"drift_{name}") or self.get_option(name)
            try:
                if path:
                    write_atomically(str(path), text(), 0o640 if name == "report_json" else 0o644)
            except OSError as exc:
                unwritten = True
                self._display.error(f"drift_{name}: {path} cannot be written: {exc.strerror}. The report is above.")
        # A host that failed or is unreachable gives Ansible's own code.
        if stats.failures or stats.dark:
            return
        code = report.exit_code
        if unwritten and code in (CLEAN, DRIFT):
            code = 1
        if code != CLEAN:
            # No exception of Ansible's: those become warnings. All that reports to people has run before.
            sys.stdout.flush()
            raise SystemExit(code)

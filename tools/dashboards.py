#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the pages of the monitoring role from one list of panels: console pages of Prometheus, and Grafana dashboards.

``--check`` writes nothing and ends with 1 when a file is out of date.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = Path(__file__).resolve().parents[1] / "roles" / "monitoring" / "files"
TASK = "$task"


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        title: what it shows.
        unit: of its values, as Grafana names units: short, s, ops, percentunit, bytes.
        curves: expressions of Prometheus, each with the labels that name its curves, or a name for the only one.
    """

    title: str
    unit: str
    curves: tuple[tuple[str, str], ...]


def panel(title: str, unit: str, *curves: tuple[str, str]) -> Panel:
    """Return a panel with these curves."""
    return Panel(title, unit, curves)


def quantile(share: float, metric: str, by: str = "le", select: str = "") -> str:
    """Return the expression of a quantile of a histogram over five minutes."""
    return f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{select}[5m])))"


OVERVIEW = (
    panel("Waiting tasks", "short", ("sum by (queue_name) (celery_queue_length)", "queue_name")),
    panel("Unacknowledged tasks", "short", ("sum(celery_unacked_messages)", "in the hands of workers")),
    panel("Oldest unacknowledged", "s", ("max(celery_unacked_oldest_age_seconds)", "age")),
    panel(
        "Tasks a second",
        "ops",
        ("sum(rate(celery_task_started_total[5m]))", "started"),
        ("sum(rate(celery_task_succeeded_total[5m]))", "succeeded"),
        ("sum(rate(celery_task_retried_total[5m]))", "retried"),
        ("sum(rate(celery_task_failed_total[5m]))", "failed"),
    ),
    panel(
        "Failures a second",
        "ops",
        ("sum by (name, exception) (rate(celery_task_failed_total[5m])) > 0", "name exception"),
    ),
    panel(
        "Wait until a task begins",
        "s",
        (quantile(0.5, "celery_task_queue_wait_time"), "half"),
        (quantile(0.95, "celery_task_queue_wait_time"), "95 %"),
    ),
    panel(
        "Runtime",
        "s",
        (quantile(0.5, "celery_task_runtime"), "half"),
        (quantile(0.95, "celery_task_runtime"), "95 %"),
    ),
    panel(
        "Busy processes",
        "percentunit",
        ("sum by (instance) (celery_worker_tasks_active) / sum by (instance) (celery_worker_concurrency)", "instance"),
    ),
    panel("Event loop stands still for", "s", ("max by (instance) (celery_worker_loop_age_seconds)", "instance")),
    panel(
        "Connections of pools in use",
        "percentunit",
        ("max by (instance, pool) (celery_pool_used / (celery_pool_limit > 0))", "instance pool"),
    ),
    panel("Results stored a second", "ops", ("sum(rate(celery_result_store_seconds_count[5m]))", "stored")),
    panel(
        "Until a result is stored",
        "s",
        (quantile(0.5, "celery_result_store_seconds"), "half"),
        (quantile(0.95, "celery_result_store_seconds"), "95 %"),
    ),
    panel("Outboxes", "short", ("max by (host, kind) (celery_outbox_records)", "host kind")),
    panel(
        "Dead letters",
        "short",
        ('sum(rabbitmq_detailed_queue_messages{queue="celery.dead_letters"})', "waiting"),
        ("sum by (reason) (increase(celery_dead_letters_total[1h]))", "reason"),
    ),
    panel("Open chords", "short", ("max(celery_chords_open)", "open"), ("max(celery_chords_complete)", "complete")),
    panel("Redis memory", "percentunit", ("redis_memory_used_bytes / (redis_memory_max_bytes > 0)", "host")),
    panel("Redis connections", "short", ("redis_connected_clients", "host")),
    panel("RabbitMQ memory", "bytes", ("rabbitmq_process_resident_memory_bytes", "host")),
    panel("RabbitMQ connections", "short", ("rabbitmq_connections", "host")),
    panel("Processor", "percentunit", ('1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[5m]))', "host")),
    panel("Memory", "percentunit", ("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "host")),
    panel(
        "Disks",
        "percentunit",
        ('1 - min by (host) (node_filesystem_avail_bytes{fstype!~"tmpfs|ramfs"} / node_filesystem_size_bytes)', "host"),
    ),
    panel("Beat is late by", "s", ("max by (host) (celery_beat_lag_seconds)", "host")),
    panel(
        "Certificates end in",
        "s",
        ("min by (host) (celeryops_certificate_not_after_timestamp_seconds) - time()", "host"),
    ),
)
_NAME = f'{{name="{TASK}"}}'
ONE_TASK = (
    panel(
        "A second",
        "ops",
        *(
            (f"sum(rate(celery_task_{end}_total{_NAME}[5m]))", end)
            for end in ("received", "started", "succeeded", "retried", "failed")
        ),
    ),
    panel(
        "Failures by exception", "ops", (f"sum by (exception) (rate(celery_task_failed_total{_NAME}[5m]))", "exception")
    ),
    panel(
        "Runtime",
        "s",
        (quantile(0.5, "celery_task_runtime", select=_NAME), "half"),
        (quantile(0.95, "celery_task_runtime", select=_NAME), "95 %"),
    ),
    panel(
        "Wait until it begins",
        "s",
        (quantile(0.5, "celery_task_queue_wait_time", select=_NAME), "half"),
        (quantile(0.95, "celery_task_queue_wait_time", select=_NAME), "95 %"),
    ),
    panel("Started, by worker", "ops", (f"sum by (instance) (rate(celery_task_started_total{_NAME}[5m]))", "instance")),
    panel(
        "Redelivered in an hour", "short", (f"sum(increase(celery_task_redelivered_total{_NAME}[1h]))", "redelivered")
    ),
)
LABELS = {"queue_name", "name", "exception", "instance", "pool", "host", "kind", "reason"}


def labels_of(naming: str) -> list[str]:
    """Return the labels that name the curves of an expression; none when there is only one curve."""
    words = naming.split()
    return words if set(words) <= LABELS else []


def page(template: str, title: str, panels: tuple[Panel, ...]) -> str:
    """Return a console page of Prometheus."""
    data = [
        {
            "title": each.title,
            "unit": each.unit,
            "curves": [{"expr": expr, "name": name, "labels": labels_of(name)} for expr, name in each.curves],
        }
        for each in panels
    ]
    return template.replace("@TITLE@", title).replace("@PANELS@", json.dumps(data, indent=1).replace("<", "\\u003c"))


def dashboard(uid: str, title: str, panels: tuple[Panel, ...], task: bool) -> str:
    """Return a dashboard as Grafana imports it (schema 38: Grafana 9.5 and later)."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    if task:
        variables.append(
            {
                "name": "task",
                "type": "query",
                "datasource": source,
                "query": "label_values(celery_task_received_total, name)",
                "refresh": 2,
            }
        )
    made = []
    for number, each in enumerate(panels):
        targets = [
            {
                "refId": chr(65 + index),
                "datasource": source,
                "expr": expr,
                "legendFormat": " ".join(f"{{{{{label}}}}}" for label in labels_of(name)) or name,
            }
            for index, (expr, name) in enumerate(each.curves)
        ]
        made.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": each.title,
                "datasource": source,
                "gridPos": {
                    "h": 7,
                    "w": 6 if not task else 8,
                    "x": number % (4 if not task else 3) * (6 if not task else 8),
                    "y": number // (4 if not task else 3) * 7,
                },
                "fieldConfig": {"defaults": {"unit": each.unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    return (
        json.dumps(
            {
                "uid": uid,
                "title": title,
                "schemaVersion": 38,
                "tags": ["celery"],
                "refresh": "30s",
                "time": {"from": "now-1h", "to": "now"},
                "templating": {"list": variables},
                "panels": made,
            },
            indent=1,
        )
        + "\n"
    )


def made_files() -> dict[Path, str]:
    """Return what each file is to hold."""
    template = (Path(__file__).with_name("console.html.template")).read_text()
    return {
        FILES / "consoles" / "celery.html": page(template, "Celery", OVERVIEW),
        FILES / "consoles" / "task.html": page(template, "Task", ONE_TASK),
        FILES / "dashboards" / "celery.json": dashboard("celeryops-overview", "Celery", OVERVIEW, task=False),
        FILES / "dashboards" / "task.json": dashboard("celeryops-task", "Celery: one task", ONE_TASK, task=True),
    }


def main(arguments: list[str]) -> int:
    """Write the files, or check them."""
    stale = [path for path, text in made_files().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is out of date: run tools/dashboards.py", file=sys.stderr)
        return bool(stale)
    for path, text in made_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

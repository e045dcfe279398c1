# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A diagnosis for people: findings first, then tables of what was looked at."""

from __future__ import annotations

import textwrap
import typing as t
from collections import Counter

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose import Data, Finding, Picture, counted

WIDTH = 118


def report(picture: Picture, found: t.Sequence[Finding]) -> str:
    """The findings, then the tables."""
    tables = [
        ("Workers", workers(picture)),
        ("Queues in Redis", queues(picture)),
        ("Unacknowledged, since their claim was made or renewed by their worker", unacked(picture)),
        ("Redis", redis(picture)),
        ("RabbitMQ", rabbitmq(picture)),
        ("Units", units(picture)),
        ("Slow log of Redis", slow_log(picture)),
    ]
    text = findings_text(picture, found)
    return "\n".join([text, *(f"\n{title}\n{_indented(lines)}" for title, lines in tables if lines)]) + "\n"


def findings_text(picture: Picture, found: t.Sequence[Finding]) -> str:
    """Every finding in words; when there is none, what that was decided by."""
    if not found:
        return _wrapped("", "", f"No findings. Looked at {looked_at(picture)}.")
    lines = [_wrapped("", "", f"{len(found)} finding{'s' * (len(found) > 1)}. Looked at {looked_at(picture)}.")]
    for number, finding in enumerate(found, 1):
        lines += ["", f"{number}. {finding.symptom}  [{finding.id}]"]
        lines += [_wrapped("   seen    ", "           ", each) for each in finding.evidence[:1]]
        lines += [_wrapped("           ", "           ", each) for each in finding.evidence[1:]]
        lines.append(_wrapped("   cause   ", "           ", finding.cause))
        lines.append(_wrapped("   remedy  ", "           ", finding.remedy))
    return "\n".join(lines)


def looked_at(p: Picture) -> str:
    """What could be looked at, in one sentence."""
    read = [host for host, said in p.said.items() if "now" in said]
    nodes = sorted({node for names in p.nodes.values() for node in names} | p.heard)
    words = [f"{len(read)} of {counted(len(p.said), 'host')}", f"{len(p.heard)} of {counted(len(nodes), 'worker')}"]
    if p.broker:
        count = p.broker["unacked"]["count"]
        waiting = counted(sum(p.queues.values()), "message")
        words.append(f"{counted(len(p.queues), 'queue')} with {waiting}, {count} unacknowledged")
    words += [f"{len(p.clients)} connections to Redis"] if p.redis else []
    words += [f"{sum(len(data['queues']) for _host, data in p.rabbitmq)} queues of RabbitMQ"] if p.rabbitmq else []
    words += [f"{len(p.units)} units and their journals"]
    return ", ".join(words)


def workers(p: Picture) -> list[str]:
    """One line a node."""
    rows = [("node", "runs", "waits", "later", "slots", "prefetch", "pool", "up", "queues")]
    for node in sorted({node for names in p.nodes.values() for node in names} | p.heard):
        answer = p.answers.get(node)
        if answer is None:
            rows.append((node, *("?",) * 7, "answers, was not asked" if node in p.heard else "no answer"))
            continue
        stats = answer.get("stats") or {}
        pool = (answer.get("pools") or {}).get("broker") or {}
        rows.append(
            (
                node,
                *(str(len(answer.get(kind) or ())) for kind in ("active", "reserved", "scheduled")),
                str((stats.get("pool") or {}).get("max-concurrency", "?")),
                str(stats.get("prefetch_count", "?")),
                f"{pool.get('used', '?')}/{pool.get('limit', '?')}",
                _duration(stats.get("uptime")),
                ", ".join(answer.get("active_queues") or ()),
            )
        )
    lines = _columns(rows) if len(rows) > 1 else []
    now = max((said["now"] for said in p.said.values() if "now" in said), default=0)
    running = [
        (now - task["time_start"], f"{node} runs {task['name']} {task['id']}")
        for node, answer in p.answers.items()
        for task in answer.get("active") or ()
        if task.get("time_start")
    ]
    return lines + [f"{text} for {_duration(age)}" for age, text in sorted(running, reverse=True)[:5]]


def queues(p: Picture) -> list[str]:
    """One line a queue, with the length of each priority's list."""
    lists: dict[str, list[str]] = {}
    for item in p.broker.get("queues", ()):
        lists.setdefault(item["queue"], []).append(f"{item['priority']}: {item['length']}")
    rows = [("queue", "messages", "by priority", "consumers")]
    for queue, parts in sorted(lists.items()):
        nodes = [node for node, answer in sorted(p.answers.items()) if queue in answer.get("active_queues", ())]
        rows.append((queue, str(p.queues[queue]), ", ".join(parts), ", ".join(nodes) or "none"))
    return _columns(rows) if lists else []


def unacked(p: Picture) -> list[str]:
    """The oldest messages that were taken and not acknowledged."""
    if not p.broker:
        return []
    rows = [
        (_duration(m["age"]), str(m.get("task", m.get("body"))), str(m.get("id")), str(m.get("queue")))
        for m in p.broker["unacked"]["messages"][:10]
    ]
    return _columns([("age", "task", "id", "queue"), *rows]) if rows else []


def redis(p: Picture) -> list[str]:
    """Memory and connections of each Redis."""
    lines = []
    for host, data in p.redis:
        info, config = data["info"], data["config"]
        lines.append(
            f"{host}: version {info.get('redis_version')}, up {_duration(info.get('uptime_in_seconds'))}, "
            f"{_mib(info.get('used_memory'))} of {_mib(config.get('maxmemory'))} MiB, "
            f"{config.get('maxmemory-policy')}, {info.get('connected_clients')} of {config.get('maxclients')} clients, "
            f"{info.get('blocked_clients')} of them wait"
        )
        kinds: dict[str, Counter[str]] = {"ours": Counter(), "stale": Counter(), "others": Counter()}
        for client in p.clients:
            if client["server"] == host:
                kinds[client["kind"]][client["owner"]] += 1
        for kind, owners in kinds.items():
            if owners:
                words = ", ".join(f"{count} {owner}" for owner, count in owners.most_common(8))
                lines.append(f"  {kind}: {sum(owners.values())} ({words})")
    return lines


def rabbitmq(p: Picture) -> list[str]:
    """Nodes, connections and queues of each RabbitMQ."""
    lines = []
    for host, data in p.rabbitmq:
        for node in data["nodes"]:
            alarms = [what for what in ("mem", "disk_free") if node.get(f"{what}_alarm")]
            lines.append(
                f"{host}: version {data['overview'].get('rabbitmq_version')}, {_mib(node.get('mem_used'))} of "
                f"{_mib(node.get('mem_limit'))} MiB, {_mib(node.get('disk_free'))} MiB disk free, "
                f"{node.get('fd_used')} of {node.get('fd_total')} descriptors, alarms: {', '.join(alarms) or 'none'}"
            )
        states = Counter(connection.get("state", "?") for connection in data["connections"])
        words = ", ".join(f"{count} {state}" for state, count in states.items())
        lines.append(f"  {len(data['connections'])} connections ({words or 'none'}), {len(data['channels'])} channels")
        streams = [queue for queue in data["queues"] if queue.get("type") == "stream"]
        lines.append(f"  {len(streams)} streams with {sum(q.get('messages') or 0 for q in streams)} results")
        others = sorted((q for q in data["queues"] if q not in streams), key=lambda q: -(q.get("messages") or 0))
        lines += [
            f"  {queue['name']}: {queue.get('messages') or 0} messages, {queue.get('consumers', 0)} consumers"
            for queue in others[:8]
        ]
    return lines


def units(p: Picture) -> list[str]:
    """One line a unit, and the last warning of its journal."""
    rows = [("host", "unit", "state", "for", "restarts", "status")]
    for host, unit in p.units:
        rows.append(
            (
                host,
                unit["name"],
                f"{unit['active']} ({unit['sub']})",
                _duration(unit["seconds"]),
                str(unit["restarts"]),
                unit["status"],
            )
        )
    return _columns(rows) if len(rows) > 1 else []


def slow_log(p: Picture) -> list[str]:
    """The newest entries."""
    return [
        f"{host}: {_duration(p.said[host]['now'] - entry['at'])} ago, {entry['milliseconds']:.0f} ms, "
        f"{entry['command']}"
        for host, data in p.redis
        for entry in data["slow_log"][:5]
    ]


def _columns(rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _indented(lines: t.Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _wrapped(first: str, other: str, text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )


def _duration(seconds: t.Any) -> str:
    try:
        number = float(seconds)
    except (TypeError, ValueError):
        return "?"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if number >= 2 * size:
            return f"{number / size:.0f} {unit}"
    return f"{number:.0f} s"


def _mib(size: t.Any) -> str:
    return "?" if size is None else f"{int(size) / 1024**2:.0f}"


def bundle(picture: Picture, found: t.Sequence[Finding], at: str) -> dict[str, Data | t.Any]:
    """Everything, for machines."""
    return {
        "version": 1,
        "at": at,
        "findings": [{**vars(finding), "evidence": list(finding.evidence)} for finding in found],
        "looked_at": looked_at(picture),
        "redis_clients": picture.clients,
        "hosts": dict(picture.said),
    }

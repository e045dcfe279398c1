# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The symptoms that are known. Each function knows one: it looks at a picture and yields findings, or nothing."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.celeryops.hybrid.plugins.plugin_utils._diagnose import Data, Finding, Picture, counted

# Shares of a limit from which on it counts as reached.
FULL = 0.9
# Seconds that every task of a worker has been running for before the worker counts as full.
LONG = 300
# Seconds for which a restart or a slow command is worth telling.
RECENT = 3600
# Seconds by which clocks may differ, and messages may be in nobody's hand.
CLOCK = 5
SLOW_MILLISECONDS = 100
UNREAD_RESULTS = 10_000
# Seconds that a chord may be complete without its body being sent, and open.
CHORD_SECONDS = 120
CHORD_OPEN_SECONDS = 86_400

_TYPES = {
    "json": "application/json",
    "pickle": "application/x-python-serialize",
    "yaml": "application/x-yaml",
    "msgpack": "application/x-msgpack",
}
_SERIALIZERS = (
    "task_serializer",
    "result_serializer",
    "event_serializer",
    "accept_content",
    "result_accept_content",
)
_RESULTS = re.compile(r"celery\.results\.\d+")
_UNDELIVERABLE = "celery.undeliverable"


Symptom = t.Callable[[Picture], t.Iterator[Finding]]
SYMPTOMS: list[Symptom] = []


def symptom(look: Symptom) -> Symptom:
    """Register a function that knows a symptom; they run, and are told, in the order of this file: causes first."""
    SYMPTOMS.append(look)
    return look


def findings(picture: Picture) -> list[Finding]:
    """Everything that is wrong."""
    return [finding for look in SYMPTOMS for finding in look(picture)]


# --- what could not be read ------------------------------------------------------------------------


@symptom
def hosts(p: Picture) -> t.Iterator[Finding]:
    for host, said in p.said.items():
        if said.get("unreachable"):
            yield Finding(
                "host.unreachable",
                f"{host} cannot be reached",
                (_first_line(said.get("msg")),),
                "The host is down, overloaded, or cut off from the control node.",
                f"Look at its console and its network; 'ping' and 'ssh -v {host}' from here.",
            )
        elif "now" not in said:
            yield Finding(
                "host.unread",
                f"{host} did not tell anything",
                (_first_line(said.get("msg") or said.get("module_stderr")),),
                "The host is overloaded, or what runs on it as root failed.",
                f"'ssh {host}', then 'uptime', 'dmesg | tail'; raise diagnose_timeout if it is only slow.",
            )


@symptom
def redis_down(p: Picture) -> t.Iterator[Finding]:
    for host in p.redis_hosts:
        error = p.error(host, "redis")
        if error:
            yield Finding(
                "redis.down",
                f"Redis on {host} does not answer its administrator",
                (error, *_unit_words(p.unit(host, "redis-server.service"))),
                "Redis is stopped, crashed, loading its data or stuck; or redis_admin_password is not the one it has.",
                f"On {host}: 'systemctl status redis-server', 'tail /var/log/redis/redis-server.log'; "
                "then 'systemctl start redis-server', or the site playbook. Workers wait and connect again by "
                "themselves.",
            )
    for host, reading in p.readings.items():
        if "redis" in reading.get("errors", {}):
            yield Finding(
                "redis.unreachable",
                f"{host} cannot use Redis as its workers do",
                (f"{reading.get('settings', {}).get('broker', 'broker')}: {reading['errors']['redis']}",),
                "Redis is down, or a firewall, an address, a password or a certificate differs between the two.",
                f"'ansible-playbook -i INVENTORY celeryops.hybrid.verify --limit {host}' says which of these it is.",
            )


@symptom
def rabbitmq_down(p: Picture) -> t.Iterator[Finding]:
    for host in p.rabbitmq_hosts:
        error = p.error(host, "rabbitmq")
        if error:
            yield Finding(
                "rabbitmq.down",
                f"RabbitMQ on {host} does not answer",
                (error, *_unit_words(p.unit(host, "rabbitmq-server.service"))),
                "RabbitMQ is stopped, crashed, starting or stuck; or rabbitmq_monitoring_password is not the one "
                "it has.",
                f"On {host}: 'systemctl status rabbitmq-server', 'rabbitmq-diagnostics status', 'tail "
                "/var/log/rabbitmq/*.log'. "
                "Results wait in the outbox of the worker hosts meanwhile, and are delivered by themselves.",
            )


@symptom
def sources(p: Picture) -> t.Iterator[Finding]:
    """Everything else that could not be read."""
    for host, said in p.said.items():
        errors = {name: text for name, text in (said.get("errors") or {}).items() if name not in ("redis", "rabbitmq")}
        reading = p.readings.get(host, {})
        errors |= {f"celery {name}": text for name, text in reading.get("errors", {}).items() if name != "redis"}
        if errors:
            yield Finding(
                "source.unread",
                f"Not everything could be read on {host}",
                tuple(f"{name}: {_first_line(text)}" for name, text in sorted(errors.items())),
                "The deployment on this host is incomplete, or what was asked hangs.",
                f"'ansible-playbook -i INVENTORY celeryops.hybrid.site --limit {host} --check --diff' shows what "
                "is missing.",
            )


# --- Redis -----------------------------------------------------------------------------------------


@symptom
def redis_memory(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.redis:
        used, limit = int(data["info"].get("used_memory", 0)), int(data["config"].get("maxmemory", 0))
        if limit and used >= FULL * limit:
            longest = sorted(p.queues.items(), key=lambda item: -item[1])[:3]
            yield Finding(
                "redis.memory",
                f"The memory of Redis on {host} is {'full' if used >= limit else 'nearly full'}",
                (
                    f"{_bytes(used)} of {_bytes(limit)}",
                    *(f"queue {name}: {counted(length, 'message')}" for name, length in longest if length),
                ),
                "Tasks are sent faster than workers take them, their arguments are large, or something else is "
                "kept there. "
                "When it is full, sending a task fails with OOM.",
                "Start more workers, or raise redis_maxmemory and run the site playbook; for one night: "
                f"'redis-cli CONFIG SET maxmemory …' on {host}. 'redis-cli --bigkeys' names the largest keys.",
            )


@symptom
def redis_eviction(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.redis:
        policy = data["config"].get("maxmemory-policy", "noeviction")
        evicted = int(data["info"].get("evicted_keys", 0))
        if policy != "noeviction" or evicted:
            yield Finding(
                "redis.evicts",
                f"Redis on {host} may delete queued tasks",
                (f"maxmemory-policy {policy}", f"{evicted} keys were evicted since it started"),
                "maxmemory-policy was changed by hand.",
                f"'ansible-playbook -i INVENTORY celeryops.hybrid.site --limit {host}' sets noeviction, without a "
                "restart.",
            )


@symptom
def redis_clients(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.redis:
        used, limit = int(data["info"].get("connected_clients", 0)), int(data["config"].get("maxclients", 0))
        if limit and used >= FULL * limit:
            counts: dict[str, int] = {}
            for client in p.clients:
                if client["server"] == host:
                    counts[client["owner"]] = counts.get(client["owner"], 0) + 1
            most = sorted(counts.items(), key=lambda item: -item[1])[:5]
            yield Finding(
                "redis.clients",
                f"Redis on {host} has hardly any connection left",
                (
                    f"{used} of {limit} connections, {data['info'].get('rejected_connections', 0)} were refused",
                    *(f"{count} of {owner}" for owner, count in most),
                ),
                "A client opens connections and does not close them, or the deployment has outgrown redis_maxclients.",
                "Restart the client that has most of them; or raise redis_maxclients and run the site playbook.",
            )


@symptom
def redis_disk(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.redis:
        info = data["info"]
        names = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        bad = [f"{name}: {info[name]}" for name in names if info.get(name, "ok") != "ok"]
        if bad:
            yield Finding(
                "redis.disk",
                f"Redis on {host} cannot write to its disk",
                tuple(bad),
                "The disk is full or read-only. Redis then refuses to take tasks, or a restart would lose them.",
                f"On {host}: 'df -h /var/lib/redis', 'tail /var/log/redis/redis-server.log'; make room.",
            )


@symptom
def redis_slow(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.redis:
        now = p.said[host]["now"]
        slow = [e for e in data["slow_log"] if now - e["at"] < RECENT and e["milliseconds"] >= SLOW_MILLISECONDS]
        if slow:
            yield Finding(
                "redis.slow",
                f"Redis on {host} was held up by slow commands",
                tuple(f"{e['milliseconds']:.0f} ms, {now - e['at']:.0f} s ago: {e['command']}" for e in slow[:5]),
                "A command that looks at everything (KEYS, a long LRANGE, a large DEL), or a host that is short of "
                "CPU. All "
                "workers wait meanwhile.",
                "Find the client by its address in the bundle's slow_log, and let it use SCAN or smaller pieces.",
            )


@symptom
def stale_connections(p: Picture) -> t.Iterator[Finding]:
    stale = [client for client in p.clients if client["kind"] == "stale"]
    if stale:
        yield Finding(
            "connections.stale",
            f"Redis holds {len(stale)} connections whose other end is gone",
            tuple(f"id={c['id']} of {c['owner']} ({c['addr']}), {c['cmd']}, idle for {c['idle']} s" for c in stale[:5]),
            "A host, a firewall or a NAT in between dropped them without a word. A task that Redis hands to such a "
            "BRPOP is "
            "lost for its visibility timeout.",
            "Redis closes them after two times tcp-keepalive by itself; at once: 'redis-cli CLIENT KILL ID …'.",
        )


# --- RabbitMQ --------------------------------------------------------------------------------------


@symptom
def rabbitmq_alarm(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        blocked = [c for c in data["connections"] if c.get("state") in ("blocked", "blocking")]
        for node in data["nodes"]:
            words = []
            if node.get("mem_alarm"):
                words.append(f"memory: {_bytes(node['mem_used'])} used, alarm above {_bytes(node['mem_limit'])}")
            if node.get("disk_free_alarm"):
                words.append(f"disk: {_bytes(node['disk_free'])} free, alarm below {_bytes(node['disk_free_limit'])}")
            if words:
                yield Finding(
                    "rabbitmq.alarm",
                    f"RabbitMQ on {host} has raised an alarm and blocks everybody who publishes",
                    (*words, f"{len(blocked)} connections are blocked"),
                    "Results are kept longer or are larger than the host has room for, or something else uses it "
                    "up. Results "
                    "wait in the outbox of the worker hosts meanwhile.",
                    f"On {host}: 'rabbitmq-diagnostics memory_breakdown', 'df -h /var/lib/rabbitmq'. Then raise "
                    "rabbitmq_memory_limit, lower rabbitmq_result_expires, or make room; the alarm ends by itself.",
                )


@symptom
def rabbitmq_limits(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        for node in data["nodes"]:
            words = [
                f"{what}: {node[used]} of {node[total]}"
                for what, used, total in (
                    ("file descriptors", "fd_used", "fd_total"),
                    ("sockets", "sockets_used", "sockets_total"),
                )
                if node.get(total) and node.get(used, 0) >= FULL * node[total]
            ]
            if words:
                yield Finding(
                    "rabbitmq.descriptors",
                    f"RabbitMQ on {host} has hardly any descriptor left",
                    tuple(words),
                    "A client opens connections and does not close them.",
                    "The bundle's rabbitmq.connections name the clients; raise rabbitmq_nofile_limit if all are "
                    "needed.",
                )


@symptom
def rabbitmq_consumers(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        for queue in data["queues"]:
            if queue["name"] == "celery.chords" and queue.get("messages") and not queue.get("consumers"):
                yield Finding(
                    "chords.no_consumer",
                    f"No worker takes over the chords of an earlier version on {host}",
                    (f"celery.chords: {queue['messages']} parts, no consumer",),
                    "No worker is connected to RabbitMQ, so that no body of a chord that an earlier version has begun "
                    "is sent.",
                    "Start the workers; 'celery result-store' shows whether they reach RabbitMQ.",
                )


# --- workers ---------------------------------------------------------------------------------------


@symptom
def clocks(p: Picture) -> t.Iterator[Finding]:
    for host, reading in p.readings.items():
        ahead = reading.get("redis", {}).get("clock_ahead", 0)
        if abs(ahead) > CLOCK:
            yield Finding(
                "clock.skew",
                f"The clock of {host} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of Redis",
                (f"clock_ahead: {ahead} s",),
                "Time is not synchronised. Workers write times into Redis, so a wrong clock brings tasks back too "
                "early or "
                "too late.",
                f"On {host}: 'timedatectl'; install or start systemd-timesyncd or chrony.",
            )


@symptom
def workers_down(p: Picture) -> t.Iterator[Finding]:
    for host, nodes in p.nodes.items():
        if p.of(host, "units") is None:
            continue
        for node in nodes:
            unit = p.unit(host, p.worker_unit(node))
            if unit is None or unit["active"] != "active":
                name = p.worker_unit(node).removesuffix(".service")
                yield Finding(
                    "worker.down",
                    f"The worker {node} does not run",
                    _unit_words(unit) or (f"{name} is not known to systemd on {host}",),
                    "It was stopped, cannot reach Redis while it starts, or its application cannot be imported.",
                    f"On {host}: 'journalctl -n 50 -u {name}', then 'systemctl start {name}' or the site playbook.",
                )


@symptom
def workers_hang(p: Picture) -> t.Iterator[Finding]:
    if not p.asked:
        return
    for host, nodes in p.nodes.items():
        for node in nodes:
            unit = p.unit(host, p.worker_unit(node))
            if node in p.heard or unit is None or unit["active"] != "active":
                continue
            held = [c for c in p.clients if c["owner"] == f"{host} {unit['name']}"]
            name = unit["name"].removesuffix(".service")
            yield Finding(
                "worker.hangs",
                f"The worker {node} runs but does not answer",
                (
                    *_unit_words(unit),
                    f"{len(held)} connections to Redis"
                    + (f", last used {min(int(c['idle']) for c in held)} s ago" if held else ": it consumes nothing"),
                ),
                "Its main process hangs in a call, as after a connection that was lost without a word, or is stopped; "
                "or the host is overloaded. systemd's watchdog ends it after worker_watchdog_timeout.",
                f"On {host}: 'systemctl kill --signal=ABRT --kill-whom=main {name}' leaves the stacks of its "
                "threads in the "
                "journal, and systemd starts it again; its tasks come back after the visibility timeout.",
            )


@symptom
def workers_restart(p: Picture) -> t.Iterator[Finding]:
    for host, unit in p.units:
        if unit["restarts"] and unit["seconds"] < RECENT:
            yield Finding(
                "unit.restarts",
                f"{unit['name']} on {host} was restarted by systemd",
                (f"{unit['restarts']} times, the last {unit['seconds']} s ago", *_warnings(unit, 3)),
                "It crashed, was killed for its memory, or the watchdog ended it.",
                f"On {host}: 'journalctl -u {unit['name']} | grep -B20 \"Scheduled restart\"' shows what it said last.",
            )


@symptom
def pools(p: Picture) -> t.Iterator[Finding]:
    cause = "Tasks or threads take connections and keep them. Further requests block indefinitely."
    for node, answer in sorted(p.answers.items()):
        full = {
            name: pool
            for name, pool in (answer.get("pools") or {}).items()
            if isinstance(pool, dict) and pool.get("limit") and pool["used"] >= pool["limit"]
        }
        if full:
            yield Finding(
                "pool.exhausted",
                f"The connection pool of {node} is used up",
                tuple(f"{name}: {pool['used']} of {pool['limit']}" for name, pool in full.items()),
                cause,
                "Restart the worker; let tasks use 'with app.connection_or_acquire()'; raise "
                f"broker_pool_limit in worker_settings. {_WAIT}",
            )
    for host, reading in p.readings.items():
        limit = reading.get("settings", {}).get("config", {}).get("broker_pool_limit")
        main = {unit["pid"] for unit in p.of(host, "units") or ()}
        held: dict[tuple[str, int], int] = {}
        ports = _redis_ports(p)
        for socket in p.of(host, "sockets") or ():
            if socket.get("pid") and socket["pid"] not in main and int(socket["remote"].rpartition(":")[2]) in ports:
                key = (socket["unit"], socket["pid"])
                held[key] = held.get(key, 0) + 1
        for (unit, pid), count in sorted(held.items()):
            if limit and unit.startswith("celery-worker@") and count >= limit:
                yield Finding(
                    "pool.exhausted",
                    f"A child of {unit} on {host} has used up its connection pool",
                    (f"process {pid}: {count} connections to Redis, broker_pool_limit is {limit}",),
                    cause,
                    f"On {host}: 'kill {pid}' ends the child and its task, and the pool makes another. Let tasks use "
                    f"'with app.connection_or_acquire()'. {_WAIT}",
                )


@symptom
def serializers(p: Picture) -> t.Iterator[Finding]:
    for name in _SERIALIZERS:
        values: dict[str, list[str]] = {}
        for node, answer in sorted(p.answers.items()):
            conf = answer.get("conf")
            if isinstance(conf, dict) and name in conf:
                values.setdefault(_shown(conf[name]), []).append(node)
        if len(values) > 1:
            yield Finding(
                "serializers.mixed",
                f"Workers do not agree on {name}",
                tuple(f"{value}: {', '.join(nodes)}" for value, nodes in values.items()),
                "A worker was not restarted after its settings changed, or one runs that this deployment does not "
                "know.",
                "Restart the one that differs; 'celeryops.hybrid.drift' finds a settings file that was changed by "
                "hand.",
            )
    refused = {n: why for r in p.readings.values() for n, why in (r.get("workers") or {}).get("refused", {}).items()}
    if refused:
        yield Finding(
            "serializers.mixed",
            f"{', '.join(sorted(refused))} answers in a format that is not accepted here",
            tuple(filter(None, refused.values())),
            "Its serializer is not the one of the others.",
            "Restart it, so that it reads the settings file.",
        )
    yield from _messages_refused(p)


def _messages_refused(p: Picture) -> t.Iterator[Finding]:
    accepted = {"application/json"}
    for answer in p.answers.values():
        conf = answer.get("conf")
        if isinstance(conf, dict):
            accepted = {_TYPES.get(str(each), str(each)) for each in conf.get("accept_content") or ("json",)}
            break
    for item in p.broker.get("queues", ()):
        bad = {kind: count for kind, count in item["content_types"].items() if kind not in accepted}
        if bad:
            sender = next((m["origin"] for m in item["next"] if m["content_type"] in bad), "")
            yield Finding(
                "serializers.mixed",
                f"The queue {item['queue']} holds messages that workers refuse",
                (
                    ", ".join(f"{count} of the sampled are {kind}" for kind, count in bad.items()),
                    f"accepted: {', '.join(sorted(accepted))}",
                    *((f"sent by {sender}",) if sender else ()),
                ),
                "An application sends with another task_serializer.",
                "Correct that application's settings. Workers put these messages away as dead letters.",
            )


@symptom
def starvation(p: Picture) -> t.Iterator[Finding]:
    for node, answer in sorted(p.answers.items()):
        running, waiting = _tasks(answer, "active"), _tasks(answer, "reserved")
        slots = _slots(answer)
        if not slots or not waiting or len(running) + len(waiting) <= slots:
            continue
        wanted = {task.get("queue") for task in waiting}
        idle = [
            other
            for other, theirs in sorted(p.answers.items())
            if other != node
            and wanted & set(theirs.get("active_queues", ()))
            and len(_tasks(theirs, "active")) + len(_tasks(theirs, "reserved")) < _slots(theirs)
        ]
        if idle:
            conf = answer.get("conf") if isinstance(answer.get("conf"), dict) else {}
            yield Finding(
                "prefetch.starvation",
                f"{node} holds tasks back that others could run",
                (
                    f"{len(running)} run there in {slots} processes, {len(waiting)} wait",
                    f"idle: {', '.join(idle)}",
                    f"worker_prefetch_multiplier {conf.get('worker_prefetch_multiplier', '?')}, "
                    f"prefetch count {(answer.get('stats') or {}).get('prefetch_count', '?')}",
                ),
                "It fetches more than it can run: worker_prefetch_multiplier is not 1, or tasks with an ETA raised "
                "its count.",
                f"'celery control -d {node} cancel_consumer QUEUE' stops it from taking more; restart it to give "
                "back what it "
                "holds, with worker_prefetch_multiplier = 1 as the role sets it.",
            )


@symptom
def full_workers(p: Picture) -> t.Iterator[Finding]:
    for queue, length in sorted(p.queues.items()) if p.complete else ():
        nodes = {n: a for n, a in p.answers.items() if queue in a.get("active_queues", ())}
        if not length or not nodes:
            continue
        now = max((said["now"] for said in p.said.values() if "now" in said), default=0)
        ages = {n: [now - (x.get("time_start") or now) for x in _tasks(a, "active")] for n, a in nodes.items()}
        if all(len(ages[n]) >= _slots(a) > 0 and min(ages[n]) > LONG for n, a in nodes.items()):
            oldest = max((x for a in nodes.values() for x in _tasks(a, "active")), key=lambda x: now - x["time_start"])
            yield Finding(
                "workers.full",
                f"Every worker of the queue {queue} is busy with long tasks",
                (
                    f"{counted(length, 'message')} waiting",
                    f"the longest runs for {now - oldest['time_start']:.0f} s: {oldest['name']} {oldest['id']}",
                ),
                "Tasks take longer than planned, as when a service that they call does not answer.",
                f"'celery control terminate SIGTERM {oldest['id']}' ends one; give calls a timeout, or long tasks "
                "a queue of "
                "their own.",
            )


# --- queues ----------------------------------------------------------------------------------------


@symptom
def stuck(p: Picture) -> t.Iterator[Finding]:
    broker, still = p.broker, p.broker.get("still_unacked")
    if not broker or not p.complete or still is None:
        return
    in_hand = {
        task.get("id")
        for answer in p.answers.values()
        for kind in ("active", "reserved", "scheduled")
        for task in _tasks(answer, kind)
    }
    timeout = broker["visibility_timeout"]
    lost = [
        m
        for m in broker["unacked"]["messages"]
        if m["tag"] in still and (m.get("id") not in in_hand or m["age"] > timeout) and m["age"] > CLOCK
    ]
    if lost:
        oldest = max(lost, key=lambda m: m["age"])
        yield Finding(
            "unacked.stuck",
            f"{len(lost)} unacknowledged messages are in no worker's hand",
            (
                *(
                    f"{m.get('task', m.get('body', '?'))} {m.get('id', m['tag'])} of queue {m.get('queue', '?')}, "
                    f"for {m['age']:.0f} s"
                    for m in sorted(lost, key=lambda m: -m["age"])[:5]
                ),
                f"the visibility timeout is {timeout:g} s"
                + (f"; no worker on {', '.join(_silent(p))} could be asked" if _silent(p) else ""),
            ),
            "Their worker died, hangs, or lost its connection."
            if oldest["age"] <= timeout
            else "No worker puts overdue messages back: none consumes, or the message itself is broken.",
            f"A worker puts each back {timeout:g} s after it was taken. Sooner: restart a worker that hangs, see "
            "above; or, when its worker is dead, 'ansible-playbook -i INVENTORY celeryops.hybrid.purge -e "
            "purge_action=recover -e purge_gone=true', which says what it would do.",
        )


@symptom
def no_consumer(p: Picture) -> t.Iterator[Finding]:
    if not p.complete:
        return
    for queue, length in sorted(p.queues.items()):
        if length and queue == _UNDELIVERABLE:
            yield Finding(
                "queue.undeliverable",
                f"{length} messages were sent to an exchange that has no queue",
                (f"{queue}: {length}",),
                "An application uses another exchange or routing key, or Redis lost its binding table.",
                "The bundle names their senders (redis.queues, 'next'); correct task_routes there.",
            )
        elif length and queue not in p.consumed:
            silent = _silent(p)
            yield Finding(
                "queue.no_consumer",
                f"No worker consumes queue '{queue}'",
                (
                    f"{counted(length, 'message')} waiting",
                    f"consumed are: {', '.join(sorted(p.consumed)) or 'none'}",
                    *((f"no answer of {', '.join(silent)}",) if silent else ()),
                ),
                "Its worker is down or hangs, was told to cancel it, or the sender misspelt the queue's name."
                if silent
                else "A worker was told to cancel it, no instance declares it, or the sender misspelt its name.",
                f"'celery control add_consumer {queue}' until the next restart; for good: add it to an instance of "
                "worker_instances and run the site playbook.",
            )


@symptom
def foreign_names(p: Picture) -> t.Iterator[Finding]:
    lists = [item for item in p.broker.get("foreign_lists", ()) if item["length"]]
    bindings = p.broker.get("foreign_bindings", ())
    cause = "A client or a worker sets 'sep' in its broker_transport_options; all others use kombu's default."
    if lists:
        yield Finding(
            "queue.foreign_name",
            f"{sum(item['length'] for item in lists)} messages are in lists that no worker reads",
            tuple(f"{item['list']!r}: {item['length']}, queue {item['queue']}" for item in lists[:5]),
            cause,
            "Remove 'sep' there, and restart it. Workers move what is in 'QUEUE:PRIORITY' within a minute; for a list "
            "with another name, once for each message: 'redis-cli LMOVE LIST QUEUE LEFT RIGHT'.",
        )
    if bindings:
        yield Finding(
            "binding.foreign_name",
            "Stock clients cannot read the bindings of an exchange",
            tuple(f"{item['exchange']}: {item['binding']!r}" for item in bindings[:5]),
            cause,
            "Remove 'sep' there, and restart it. Workers rewrite bindings with ':' within a minute; remove another "
            "with 'redis-cli SREM _kombu.binding.EXCHANGE BINDING'.",
        )


@symptom
def poison(p: Picture) -> t.Iterator[Finding]:
    for item in p.broker.get("queues", ()):
        if item["unreadable"]:
            yield Finding(
                "queue.poison",
                f"The queue {item['queue']} holds elements that are not messages",
                (f"{item['unreadable']} of those looked at, priority {item['priority']}",),
                "Something other than Celery writes to this list.",
                f"Look at it: 'redis-cli LRANGE {item['queue']} -10 -1'; find who writes there.",
            )


# --- results ---------------------------------------------------------------------------------------


@symptom
def results_never_expire(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        streams = [q for q in data["queues"] if _RESULTS.fullmatch(q["name"])]
        endless = [
            q
            for q in streams
            if "max-age" not in (q.get("effective_policy_definition") or {})
            and "x-max-age" not in (q.get("arguments") or {})
        ]
        if endless:
            yield Finding(
                "results.never_expire",
                f"Results on {host} are kept indefinitely",
                (
                    f"{len(endless)} of {counted(len(streams), 'stream')} without max-age",
                    f"{sum(q.get('messages') or 0 for q in streams)} results are kept now",
                ),
                "The policy celery.results was deleted, or another one with a higher priority hides it.",
                f"'ansible-playbook -i INVENTORY celeryops.hybrid.site --limit {host}' declares it again.",
            )


@symptom
def results_unread(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        for queue in data["queues"]:
            if queue["name"].startswith("celery.reply.") and (queue.get("messages_ready") or 0) >= UNREAD_RESULTS:
                yield Finding(
                    "results.unread",
                    f"Results pile up in a reply queue on {host}",
                    (f"{queue['name']}: {queue['messages_ready']} wait, {queue.get('consumers', 0)} consumers",),
                    "A client sends tasks and hangs, or died; its queue is bounded, and expires when it is not used.",
                    "The queue's name tells host and process of the client: look at it there.",
                )


@symptom
def results_in_redis(p: Picture) -> t.Iterator[Finding]:
    count = p.broker.get("results_in_redis", 0)
    if count:
        yield Finding(
            "results.in_redis",
            "Results grow in Redis",
            (
                f"{count} keys celery-task-meta-*"
                + ("" if p.broker.get("all_keys_seen") else ", and not all were looked at"),
            ),
            "An application or worker still has result_backend = redis://….",
            "Set its result_backend to amqp://… and delete the keys: "
            "'redis-cli --scan --pattern \"celery-task-meta-*\" | xargs redis-cli UNLINK'.",
        )


@symptom
def outbox(p: Picture) -> t.Iterator[Finding]:
    hosts: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, str] = {}
    for node, answer in sorted(p.answers.items()):
        store = answer.get("result_store") or {}
        letters = store.get("dead_letters") or {}
        counts = {"results": (store.get("outbox") or {}).get("count"), "dead letters": letters.get("count")}
        words = [f"{count} {what} wait" for what, count in counts.items() if count]
        if store.get("circuit") not in (None, "closed"):
            words.append(f"the circuit to RabbitMQ is {store['circuit']}")
        if words:
            # All workers of a host share one outbox of results, and one of dead letters.
            host = node.partition("@")[2]
            hosts[host] = (*words, *filter(None, (store.get("failure"), letters.get("failure"))))
            waiting = [what for what, count in counts.items() if count]
            kinds[host] = " and ".join(waiting or ["results"]).capitalize()
    for host, words in hosts.items():
        yield Finding(
            "results.outbox",
            f"{kinds[host]} of the workers on {host} do not reach RabbitMQ",
            words,
            "RabbitMQ is down, blocked by an alarm, out of reach, or refuses these workers.",
            "Nothing is lost: they are delivered by themselves. See the findings about RabbitMQ, and 'celery "
            "result-store'.",
        )


@symptom
def chords(p: Picture) -> t.Iterator[Finding]:
    rows: dict[str, dict[str, t.Any]] = {}
    for answer in p.answers.values():
        unfinished = (answer.get("result_store") or {}).get("chords") or {}
        rows |= {row["group"]: row for row in unfinished.get("oldest") or ()}
    stuck = {group: row for group, row in rows.items() if (row["complete_seconds"] or 0) > CHORD_SECONDS}
    if stuck:
        yield Finding(
            "chords.stuck",
            "Chords are complete, and their bodies are not sent",
            tuple(
                f"{group}: complete for {row['complete_seconds']} s, {row['tries']} attempts"
                for group, row in sorted(stuck.items())
            ),
            "A large result of theirs is not in RabbitMQ yet, Redis refuses the body's queue, or sending it fails.",
            "The log of the workers says why ('is sent later'). After five attempts the body fails.",
        )
    slow = {group: row for group, row in rows.items() if group not in stuck and row["seconds"] > CHORD_OPEN_SECONDS}
    if slow:
        yield Finding(
            "chords.open",
            "Chords have been open for very long",
            tuple(
                f"{group}: {row['ended']} of {row['size'] or 'an unknown number of'} tasks ended, the first "
                f"{row['seconds'] // 3600} h ago"
                for group, row in sorted(slow.items())
            ),
            "Tasks of their headers wait in a queue that no worker consumes, were purged, or take that long.",
            "Look for their tasks by the group's id. Without news for result_expires a chord fails by itself.",
        )


@symptom
def dead_letters(p: Picture) -> t.Iterator[Finding]:
    for host, data in p.rabbitmq:
        for queue in data["queues"]:
            if queue["name"] == "celery.dead_letters" and queue.get("messages"):
                yield Finding(
                    "dead_letters.waiting",
                    f"{queue['messages']} dead letters are waiting",
                    (f"celery.dead_letters on {host}: {queue['messages']}",),
                    "Tasks failed for good, or messages could not be read.",
                    "Look at them, and replay or discard them, before they expire.",
                )


_WAIT = "broker_pool_acquire_timeout (Celery 5.7) makes an error of the hang."


def _redis_ports(p: Picture) -> set[int]:
    ports = {6379, 6380}
    for answer in p.answers.values():
        port = ((answer.get("stats") or {}).get("broker") or {}).get("port")
        ports |= {int(port)} if port else set()
    return ports


def _tasks(answer: Data, kind: str) -> list[Data]:
    tasks = answer.get(kind)
    return [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []


def _slots(answer: Data) -> int:
    pool = (answer.get("stats") or {}).get("pool") or {}
    return int(pool.get("max-concurrency") or 0)


def _silent(p: Picture) -> list[str]:
    return sorted({node for nodes in p.nodes.values() for node in nodes} - p.heard)


def _unit_words(unit: Data | None) -> tuple[str, ...]:
    if unit is None:
        return ()
    status = f", says: {unit['status']}" if unit["status"] else ""
    return (f"{unit['name']} is {unit['active']} ({unit['sub']}) for {unit['seconds']} s{status}",)


def _warnings(unit: Data, most: int) -> tuple[str, ...]:
    """The last lines of a journal that report trouble."""
    bad = [
        line
        for line in unit.get("journal", ())
        if re.search(r"\b(CRITICAL|ERROR|Failed|killed|core-dump|timeout)\b", line)
    ]
    return tuple(bad[-most:])


def _shown(value: t.Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, (list, tuple)) else str(value)


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _first_line(text: t.Any) -> str:
    lines = str(text or "no reason was given").strip().splitlines()
    return lines[0][:300] if lines else "no reason was given"

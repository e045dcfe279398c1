# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What celery_diagnose reads on a host. Reads only; whatever cannot be read is an error beside what could."""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.celeryops.hybrid.plugins.module_utils._masking import masked, secrets_of
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import ManagementApi
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisClient, tls_context
from ansible_collections.celeryops.hybrid.plugins.module_utils._worker_process import RunError, environment_of, run

READER = "celery_hybrid.diagnose"
# Seconds that one answer of a server, or one command, may take.
_TIMEOUT = 3.0
_ESTABLISHED = "01"
_CLIENT = ("id", "addr", "name", "user", "age", "idle", "db", "cmd", "lib-name", "flags", "qbuf", "omem", "tot-mem")
# Of these even the second word may be a secret.
_SECRET_COMMANDS = {"AUTH", "HELLO", "ACL", "CONFIG", "MIGRATE"}
_UNIT = ("Id", "LoadState", "ActiveState", "SubState", "Result", "NRestarts", "MainPID", "StatusText")
_UNIT_TIMES = ("ActiveEnterTimestampMonotonic", "StateChangeTimestampMonotonic")
_RABBITMQ: dict[str, tuple[str, ...]] = {
    "overview": ("rabbitmq_version", "erlang_version", "object_totals", "queue_totals", "message_stats"),
    "nodes": (
        "name",
        "running",
        "uptime",
        "mem_used",
        "mem_limit",
        "mem_alarm",
        "disk_free",
        "disk_free_limit",
        "disk_free_alarm",
        "fd_used",
        "fd_total",
        "sockets_used",
        "sockets_total",
        "partitions",
    ),
    "connections": ("name", "user", "vhost", "state", "peer_host", "channels", "connected_at", "client_properties"),
    "channels": ("name", "user", "vhost", "state", "consumer_count", "messages_unacknowledged", "prefetch_count"),
    "queues": (
        "name",
        "vhost",
        "type",
        "state",
        "messages",
        "messages_ready",
        "messages_unacknowledged",
        "message_bytes",
        "consumers",
        "memory",
        "arguments",
        "effective_policy_definition",
    ),
}


def read_host(params: Mapping[str, Any], hide: Callable[[Iterable[str]], None]) -> dict[str, Any]:
    """Read all sources of a host side by side.

    Args:
        params: the module's parameters.
        hide: is told the secrets, before anything that could hold one is kept.

    Returns:
        What each source says, and in ``errors`` why others say nothing.
    """
    started = time.monotonic()
    secrets: list[str] = []
    environment: dict[str, str] = {}
    errors: dict[str, str] = {}
    if params["worker"]:
        try:
            environment = environment_of(params["worker"]["environment_file"])
        except RunError as exc:
            errors["worker"] = exc.actual
        secrets = secrets_of(environment)
        hide(secrets)
    sources: dict[str, Callable[[], Any]] = {
        "units": lambda: units(params["units"], params["lines"]),
        "logs": lambda: logs(params["log_files"], params["lines"]),
        "addresses": lambda: _command("hostname", "-I").split(),
        "sockets": lambda: sockets(params["ports"]),
    }
    if environment:
        sources["worker"] = lambda: worker(params["worker"])
    if params["redis"]:
        sources["redis"] = lambda: redis(params["redis"])
    if params["rabbitmq"]:
        sources["rabbitmq"] = lambda: rabbitmq(params["rabbitmq"])
    found: dict[str, Any] = {"now": time.time(), "errors": errors}
    with ThreadPoolExecutor(len(sources)) as pool:
        for name, reading in [(name, pool.submit(source)) for name, source in sources.items()]:
            try:
                found[name] = reading.result()
            except RunError as exc:
                errors[name] = exc.actual
            except Exception as exc:  # in an incident half an answer is better than none
                errors[name] = str(exc) or type(exc).__name__
    found["seconds"] = round(time.monotonic() - started, 2)
    # Which process holds a connection is known to its owner only.
    holders = found.get("worker", {}).pop("sockets", {})
    for socket in found.get("sockets", []):
        socket.update(holders.get(socket.pop("inode"), {}))
    return masked(found, secrets)


def worker(params: Mapping[str, Any]) -> dict[str, Any]:
    """What celery-hybrid reads with the workers' own Python, environment and rights.

    Raises:
        RunError: no answer.
    """
    names = ("config_module", "python_path", "nodes", "others", "timeout")
    answer = run(
        python=params["python"],
        user=params["user"],
        environment_file=params["environment_file"],
        request={name: params[name] for name in names},
        seconds=params["limit"],
        program=READER,
    )
    return parts_of(answer, params["limit"])


def parts_of(answer: str, limit: float) -> dict[str, Any]:
    """The parts of a reading; ``errors`` has those that failed, and ``ended`` is whether it was complete."""
    found: dict[str, Any] = {"errors": {}, "seconds": {}, "ended": False}
    for line in answer.splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue  # it was ended while it wrote this line
        if "end" in data:
            found["ended"] = True
        elif "error" in data:
            found["errors"][data["part"]] = data["error"]
        else:
            found[data["part"]] = data["data"]
        if "seconds" in data:
            found["seconds"][data["part"]] = data["seconds"]
    if not found["ended"]:
        found["errors"]["end"] = f"it was stopped after {limit:g} s"
    return found


def redis(params: Mapping[str, Any]) -> dict[str, Any]:
    """What Redis tells its administrator."""
    tls = tls_context(*(params[name] for name in ("ca_path", "client_cert", "client_key"))) if params["tls"] else None
    login = [params[name] for name in ("host", "port", "username", "password")]
    with RedisClient(*login, timeout=_TIMEOUT, tls=tls, server_hostname=params["server_hostname"]) as client:
        lines = client.call("INFO", "everything").splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        names = ("maxclients", "maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "timeout")
        words = client.call("CONFIG", "GET", *names)
        return {
            "info": {name: value for name, value in info.items() if not name.startswith(("cmdstat", "latency"))},
            "config": dict(zip(words[0::2], words[1::2], strict=True)),
            "clients": clients_of(client.call("CLIENT", "LIST")),
            "slow_log": [slow_of(entry) for entry in client.call("SLOWLOG", "GET", 20)],
        }


def clients_of(text: str) -> list[dict[str, str]]:
    """The lines of ``CLIENT LIST``."""
    lines = (dict(pair.partition("=")[::2] for pair in line.split(" ")) for line in text.splitlines())
    return [{name: line[name] for name in _CLIENT if name in line} for line in lines]


def slow_of(entry: Sequence[Any]) -> dict[str, Any]:
    """One entry of the slow log: command and key, without what else it was given."""
    at, micros, words, *who = entry[1:]
    command = str(words[0]).upper()
    shown = [command] if command in _SECRET_COMMANDS else [command, *(str(word)[:64] for word in words[1:2])]
    return {"at": at, "milliseconds": micros / 1000, "command": " ".join(shown), "client": str((who or [""])[0])}


def rabbitmq(params: Mapping[str, Any]) -> dict[str, Any]:
    """What RabbitMQ's management API tells."""
    api = ManagementApi(params["url"], params["username"], params["password"], timeout=_TIMEOUT)
    found = {}
    for kind, names in _RABBITMQ.items():
        # A list may be long: only what is needed is computed and sent.
        answer = api.get(kind, query="" if kind == "overview" else f"?columns={','.join(names)}")
        one = isinstance(answer, dict)
        kept = [{name: item[name] for name in names if name in item} for item in ([answer] if one else answer)]
        found[kind] = kept[0] if one else kept
    for connection in found["connections"]:
        properties = connection.pop("client_properties", None) or {}
        connection["client"] = properties.get("connection_name") or properties.get("product")
    return found


def units(patterns: Sequence[str], lines: int) -> list[dict[str, Any]]:
    """The units of these names, with the end of the journal of each."""
    if not patterns:
        return []
    shown = _command("systemctl", "show", "--property", ",".join(_UNIT + _UNIT_TIMES), "--", *patterns)
    uptime = time.clock_gettime(time.CLOCK_MONOTONIC)
    found = []
    for block in shown.split("\n\n"):
        unit = dict(line.partition("=")[::2] for line in block.splitlines())
        # A name may match several patterns.
        if unit.get("LoadState") != "loaded" or any(each["name"] == unit["Id"] for each in found):
            continue
        found.append(
            {
                "name": unit["Id"],
                "active": unit["ActiveState"],
                "sub": unit["SubState"],
                "result": unit["Result"],
                "restarts": int(unit["NRestarts"] or 0),
                "pid": int(unit["MainPID"] or 0),
                "status": unit["StatusText"],
                "seconds": round(uptime - int(unit["StateChangeTimestampMonotonic"] or 0) / 1e6),
                "journal": _command(
                    "journalctl", "--no-pager", "-q", "-o", "short-iso", "-n", str(lines), "-u", unit["Id"]
                ).splitlines(),
            }
        )
    return found


def logs(patterns: Sequence[str], lines: int) -> dict[str, list[str]]:
    """The end of each file: servers that do not write to the journal."""
    found = {}
    for path in sorted(name for pattern in patterns for name in glob.glob(pattern)):  # noqa: PTH207
        with Path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 400 * lines))
            found[path] = stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    return found


def sockets(ports: Sequence[int], proc: Path = Path("/proc")) -> list[dict[str, str]]:
    """Connections from this host to these ports."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            rows = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            local, remote, state, *rest = row.split()[1:]
            if state == _ESTABLISHED and int(remote.rpartition(":")[2], 16) in ports:
                found.append({"local": _address(local), "remote": _address(remote), "inode": rest[5]})
    return found


def _address(text: str) -> str:
    """``IP:PORT`` of the kernel's hexadecimal form, written as Redis writes it."""
    address, port = text.partition(":")[::2]
    data = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    if len(data) == 16 and data[:12] == b"\0" * 10 + b"\xff\xff":
        data = data[12:]
    if len(data) == 4:
        return f"{'.'.join(map(str, data))}:{int(port, 16)}"
    return f"[{ipaddress.ip_address(data)}]:{int(port, 16)}"


def _command(*words: str) -> str:
    # run_command has no timeout.
    done = subprocess.run(words, capture_output=True, check=False, timeout=_TIMEOUT)  # pylint: disable=ansible-bad-function
    return done.stdout.decode("utf-8", "replace")

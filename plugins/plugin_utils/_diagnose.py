# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a deployment said in an incident, put together.

On the control node, because any host may be down.
"""

from __future__ import annotations

import dataclasses
import typing as t
from functools import cached_property

Data = t.Mapping[str, t.Any]

# Seconds. A connection that changed hands while hosts were being read is not stale.
GRACE = 15


def counted(count: int, noun: str) -> str:
    """Return so many things in words."""
    return f"{count} {noun}{'s' * (count != 1)}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        id: stable name of the symptom.
        symptom: what is seen, with names.
        evidence: numbers and names that show it.
        cause: what it most likely comes from.
        remedy: what to do, with a command.
    """

    id: str
    symptom: str
    evidence: tuple[str, ...]
    cause: str
    remedy: str


class Picture:
    """What all hosts said.

    Args:
        said: what celery_diagnose returned, by host; a host that could not be asked has ``unreachable`` or ``failed``.
        nodes: node names that each host declares.
        redis: hosts of Redis.
        rabbitmq: hosts of RabbitMQ.
    """

    def __init__(self, said: Data, nodes: Data, redis: t.Sequence[str] = (), rabbitmq: t.Sequence[str] = ()) -> None:
        self.said = said
        self.nodes = {host: list(names) for host, names in nodes.items() if host in said}
        self.redis_hosts = [host for host in redis if host in said]
        self.rabbitmq_hosts = [host for host in rabbitmq if host in said]

    def of(self, host: str, source: str) -> t.Any:
        """What a host said about a source; None when it said nothing."""
        return self.said[host].get(source)

    def error(self, host: str, source: str) -> str:
        """Why a host said nothing about a source."""
        return (self.said[host].get("errors") or {}).get(source, "")

    @cached_property
    def readings(self) -> dict[str, Data]:
        """What Celery's side said, by the host on which it was read."""
        return {host: self.of(host, "worker") for host in self.said if self.of(host, "worker")}

    @cached_property
    def answers(self) -> dict[str, Data]:
        """What each node answered."""
        merged: dict[str, Data] = {}
        for reading in self.readings.values():
            for node, answer in (reading.get("workers") or {}).get("nodes", {}).items():
                merged.setdefault(node, answer)
        return merged

    @cached_property
    def heard(self) -> set[str]:
        """Nodes that answered a ping."""
        return {n for reading in self.readings.values() for n in (reading.get("workers") or {}).get("heard", ())}

    @property
    def asked(self) -> bool:
        """Whether any host could ask the nodes."""
        return any("workers" in reading for reading in self.readings.values())

    @property
    def complete(self) -> bool:
        """Whether every living node has told what it has unacknowledged; that of a host that cannot be read has not."""
        wanted = ("active", "reserved", "scheduled", "active_queues")
        return self.asked and all(name in self.answers.get(node, {}) for node in self.heard for name in wanted)

    @cached_property
    def broker(self) -> Data:
        """Queues and unacknowledged messages, as the first host saw them that could."""
        seen = [r for r in self.readings.values() if "redis" in r]
        return {**seen[0]["redis"], "still_unacked": seen[0].get("still_unacked")} if seen else {}

    @property
    def queues(self) -> dict[str, int]:
        """Messages that wait in each queue, over all priorities."""
        lengths: dict[str, int] = {}
        for item in self.broker.get("queues", ()):
            lengths[item["queue"]] = lengths.get(item["queue"], 0) + item["length"]
        return lengths

    @cached_property
    def consumed(self) -> set[str]:
        """Queues that a node consumes."""
        return {queue for answer in self.answers.values() for queue in answer.get("active_queues", ())}

    @cached_property
    def units(self) -> list[tuple[str, Data]]:
        """Units, with their hosts."""
        return [(host, unit) for host in self.said for unit in self.of(host, "units") or ()]

    def unit(self, host: str, name: str) -> Data | None:
        """One unit of a host."""
        return next((unit for unit in self.of(host, "units") or () if unit["name"] == name), None)

    @staticmethod
    def worker_unit(node: str) -> str:
        """The unit of a node."""
        return f"celery-worker@{node.partition('@')[0]}.service"

    @cached_property
    def redis(self) -> list[tuple[str, Data]]:
        """What each Redis said."""
        return [(host, self.of(host, "redis")) for host in self.redis_hosts if self.of(host, "redis")]

    @cached_property
    def rabbitmq(self) -> list[tuple[str, Data]]:
        """What each RabbitMQ said."""
        return [(host, self.of(host, "rabbitmq")) for host in self.rabbitmq_hosts if self.of(host, "rabbitmq")]

    @cached_property
    def clients(self) -> list[dict[str, t.Any]]:
        """The connections of every Redis, each with ``kind`` and ``owner``.

        The kind is ``ours`` when the other end is on a host that was read, ``stale`` when it should be there and is
        not, else ``others``.
        """
        return [
            {**client, "server": server} | self._owner(server, client)
            for server, data in self.redis
            for client in data["clients"]
        ]

    def _owner(self, server: str, client: Data) -> dict[str, str]:
        address = client["addr"].rpartition(":")[0].strip("[]")
        local = address in ("127.0.0.1", "::1")
        for host in [server] if local else self.said:
            if self.of(host, "sockets") is None or not (local or address in (self.of(host, "addresses") or ())):
                continue
            for socket in self.of(host, "sockets"):
                if socket["local"] == client["addr"]:
                    return {"kind": "ours", "owner": " ".join(filter(None, (host, socket.get("unit"))))}
            young = min(int(client["age"]), int(client["idle"])) < GRACE
            # One that lasts a moment may have been opened or closed between reading both ends.
            return {"kind": "ours" if young else "stale", "owner": host}
        return {"kind": "others", "owner": address}

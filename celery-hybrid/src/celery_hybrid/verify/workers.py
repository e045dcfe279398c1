"""Checks of the live workers, through Celery's remote control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from kombu.exceptions import ContentDisallowed

from celery_hybrid.terminal import counted

from .report import CheckReport, Failed
from .results import NO_FACTS
from .settings import canonical, reported_backend, show, value_of

# Connections that a worker's main process, and each of its children, may need to Redis and to RabbitMQ: as the worker
# role adds them up before it deploys.
_MAIN, _CHILD = (12, 4), (3, 2)
# Long enough for idle workers on a busy host; nodes that are named, and not heard by then, get inspect_timeout.
_DISCOVERY = 1.0


class Workers:
    """What the live workers answer.

    Args:
        app: the Celery application.
        nodes: node names that must answer; empty: any one must.
        timeout: seconds in which they must.
    """

    def __init__(self, app: Any, nodes: Sequence[str], timeout: float) -> None:
        self._app = app
        self._nodes = list(dict.fromkeys(nodes))
        self._timeout = timeout
        self._conf: dict[str, dict[str, Any]] = {}
        self._queues: dict[str, list[str]] = {}
        self._own: list[str] = []
        self.refused: dict[str, str] = {}

    def check(
        self, report: CheckReport, agreed: Mapping[str, Any], queues: Sequence[str], declared: Sequence[str]
    ) -> None:
        """Run all checks of the workers.

        Args:
            report: takes what is found.
            agreed: settings that each worker of this application must run with.
            queues: queues that must each have a worker.
            declared: the application's queues. A worker that is not named in ``nodes`` and consumes none of them is
                another application's, in the same database of Redis: its settings are not judged.
        """
        report.run(
            "workers.answer",
            f"every node answers: {', '.join(self._nodes)}" if self._nodes else "at least one worker answers",
            lambda: self._answer({*queues, *declared}),
            remedy="Look at the node on its host: systemctl status 'celery-worker@*', journalctl -u 'celery-worker@*'.",
            needs=["broker.authorised"],
        )
        some = [] if self._own else ["workers.answer"]
        report.run(
            "settings.workers",
            f"{len(agreed)} settings are the file's on every worker",
            lambda: self._agree(agreed),
            remedy="Restart that worker, so that it reads the file; if it then still differs, its application or its "
            "command line overrides the file.",
            needs=some,
        )
        report.run(
            "workers.queues",
            f"a worker consumes each queue: {', '.join(queues)}",
            lambda: self._consumed(queues),
            remedy="Add the queue to an instance of worker_instances and run the site playbook.",
            needs=some,
        )

        report.run(
            "workers.outbox",
            "no result and no dead letter waits in an outbox for RabbitMQ",
            self._outbox,
            remedy="See 'celery result-store' for why RabbitMQ does not accept them. They are delivered by "
            "itself; 'celery tasks refused' shows what RabbitMQ refuses for good, tries it again or removes it.",
            needs=some,
        )

    def check_connections(
        self, report: CheckReport, broker: Mapping[str, Any] | None, results: Mapping[str, Any] | None
    ) -> None:
        """Compare what the live workers may need with what the servers allow."""
        report.run(
            "workers.connections",
            "Redis and RabbitMQ allow the connections that the live workers may need",
            lambda: self._connections(broker or {}, results or {}),
            remedy="Raise redis_maxclients (and redis_nofile_limit) or rabbitmq_nofile_limit, or lower concurrency in "
            "worker_instances, and run the site playbook.",
            needs=["workers.answer"],
        )

    def unconsumed(self, queues: Sequence[str]) -> list[str]:
        """Queues that certainly no worker consumes: every node that was asked has answered without them."""
        if not self._conf or set(self._queues) != {*self._conf, *self._nodes}:
            return []
        return [queue for queue in queues if queue not in self.consumed]

    @property
    def consumed(self) -> set[str]:
        """Every queue that some worker said that it consumes."""
        return {name for names in self._queues.values() for name in names}

    def ask(self, command: str, destination: list[str] | None, timeout: float, **arguments: Any) -> dict[str, Any]:
        """What live workers answer; one that answers in a refused format, such as pickle, is noted and left out."""
        try:
            return self._request(command, destination, timeout, **arguments)
        except ContentDisallowed:
            if destination is None:
                self.refused.setdefault("some worker", "")
                return {}
        answers: dict[str, Any] = {}
        for node in destination:
            # A refused answer to an earlier question may still lie in the reply queue: each try takes one away.
            for _ in range(len(destination) + 1):
                try:
                    answers.update(self._request(command, [node], timeout, **arguments))
                    break
                except ContentDisallowed as exc:
                    reason = str(exc)
            else:
                self.refused[node] = reason
        return answers

    def _request(self, command: str, destination: list[str] | None, timeout: float, **arguments: Any) -> dict[str, Any]:
        inspect = self._app.control.inspect(destination=destination, timeout=timeout)
        # A command of this package has no method of its own there.
        ask = getattr(inspect, command, None) or partial(inspect._request, command)
        return dict(ask(**arguments) or {})

    def _answer(self, queues: set[str]) -> str:
        heard = self.ask("ping", None, min(_DISCOVERY, self._timeout))
        known = sorted({*heard, *self._nodes})
        if known:
            # With named destinations Celery stops waiting when all of them have answered.
            replies = self.ask("conf", known, self._timeout, with_defaults=True)
            self._conf = {node: reply for node, reply in replies.items() if isinstance(reply, dict)}
        live = sorted(self._conf)
        if live:
            replies = self.ask("active_queues", live, self._timeout)
            self._queues = {
                node: [str(queue.get("name")) for queue in reply]
                for node, reply in replies.items()
                if isinstance(reply, list)
            }
            for node, reply in self.ask("report", live, self._timeout).items():
                if isinstance(reply, dict):
                    self._conf[node]["result_backend"] = reported_backend(str(reply.get("ok", "")))
        # One that does not say what it consumes counts as this application's.
        self._own = [
            node for node in live if node in self._nodes or queues.intersection(self._queues.get(node, queues))
        ]
        if self.refused:
            named = [node for node in self.refused if "@" in node] or list(self.refused)
            why = self.refused[named[0]] or "no JSON"
            raise Failed(
                f"{', '.join(named)} answers in a format that is not accepted here: {why}",
                "Its serializer is not the file's: restart it, so that it reads the file.",
            )
        others = [node for node in live if node not in self._own]
        missing = [node for node in (self._nodes or known) if node not in self._conf]
        heard_from = ", ".join(live) or "none"
        if missing:
            raise Failed(f"no answer from {', '.join(missing)} within {self._timeout:g} s (answered: {heard_from})")
        if not self._conf:
            raise Failed("no worker answered")
        if not self._own:
            raise Failed(f"no worker of this application answered, only of others: {heard_from}")
        told = f"{len(self._own)} answered: {', '.join(self._own)}"
        return f"{told}; not this application's, by their queues: {', '.join(others)}" if others else told

    def _agree(self, agreed: Mapping[str, Any]) -> str:
        other = []
        for node in self._own:
            conf = self._conf[node]
            if "error" in conf and "task_serializer" not in conf:
                other.append(f"{node} cannot report its configuration: {conf['error']}")
                continue
            for name, wanted in agreed.items():
                value = value_of(conf, name)
                if value != canonical(name, wanted):
                    other.append(f"{node}: {name} is {show(value)}, the file says {show(wanted)}")
        if other:
            raise Failed("; ".join(other))
        return f"{len(agreed)} settings agree on {', '.join(self._own)}"

    def _consumed(self, queues: Sequence[str]) -> str:
        lonely = [queue for queue in queues if queue not in self.consumed]
        if lonely:
            raise Failed(f"no worker consumes {', '.join(lonely)}")
        return "; ".join(
            f"{queue}: {', '.join(sorted(node for node, names in self._queues.items() if queue in names))}"
            for queue in queues
        )

    def _connections(self, broker: Mapping[str, Any], results: Mapping[str, Any]) -> str:
        need = [0, 0]
        for node, stats in self.ask("stats", sorted(self._conf), self._timeout).items():
            pool = stats.get("pool") or {}
            children = int(pool.get("max-concurrency") or 1)
            forks = "prefork" in str(pool.get("implementation", "prefork"))
            # Threads share the pool of their process, and its connections to RabbitMQ.
            sending = children if forks else min(children, int(self._conf[node].get("broker_pool_limit") or children))
            need[0] += _MAIN[0] + sending * _CHILD[0]
            need[1] += _MAIN[1] + (children * _CHILD[1] if forks else 0)
        told, short = [], False
        limits = (_redis_limit(broker), _rabbitmq_limit(results))
        for server, needed, (allowed, now) in zip(("Redis", "RabbitMQ"), need, limits, strict=True):
            told.append(f"{server}: {needed} may be needed, {allowed} are allowed, {now} are open")
            short = short or needed > allowed
        if short:
            raise Failed("; ".join(told))
        return "; ".join(told)

    def _outbox(self) -> str:
        states = self.ask("result_store", self._own, self._timeout)
        told = []
        for node in self._own:
            state = states.get(node) or {}
            outbox = state.get("outbox") if isinstance(state, dict) else None
            if not isinstance(outbox, dict):
                raise Failed(
                    f"{node} does not report it", "Its result backend is not this package's, or of an older release."
                )
            if "error" in outbox:
                raise Failed(
                    f"{node}: {outbox['error']}",
                    "Make the folder writable for the worker's user; tasks wait whenever RabbitMQ is away.",
                )
            for what, box in (("results", outbox), ("dead letters", state.get("dead_letters") or {})):
                if "error" in box:
                    told.append(f"{node}: {box['error']}")
                told += [f"{node}: {counted(box[name], what)} {words}" for name, words in _OUTBOX if box.get(name)]
        if told:
            raise Failed("; ".join(told))
        return f"empty on {', '.join(self._own)}"


_OUTBOX = (
    ("count", "waiting"),
    ("refused", "refused by RabbitMQ for good"),
)


def _redis_limit(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many clients Redis allows, and how many it has."""
    try:
        return int(facts["maxclients"]), int(facts["connected_clients"])
    except (KeyError, TypeError, ValueError):
        why = facts.get("error") or "no facts of the Redis host were given"
        raise Failed(
            f"undecided: a worker's rights do not show it, and {why}",
            "Run playbooks/verify.yml with the redis group in the inventory and REDIS_ADMIN_PASSWORD set.",
        ) from None


def _rabbitmq_limit(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many connections the nodes of RabbitMQ allow together, and how many there are."""
    nodes = facts.get("nodes")
    if not nodes:
        why = facts.get("error") or "no facts of the RabbitMQ host were given"
        raise Failed(f"undecided: a worker's rights do not show it, and {why}", NO_FACTS)
    # RabbitMQ before 4.0 keeps a part of its descriptors for sockets.
    allowed = sum(int(node.get("sockets_total") or node.get("fd_total") or 0) for node in nodes)
    return allowed, int((facts.get("overview") or {}).get("object_totals", {}).get("connections") or 0)

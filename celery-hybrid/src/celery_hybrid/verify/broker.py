"""Checks of the broker, Redis, over the very URL and options that the workers use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from kombu.utils.url import parse_url

from celery_hybrid.terminal import counted

from .report import CheckReport, Failed, describe
from .tcp import LEAST_DAYS, RENEW, reach, shaken

PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "sentinels": 26379, "valkey": 6379, "valkeys": 6379}
# Reads of each kind of key that Celery keeps in Redis; none of them exists, so none of them costs anything.
_PROBES: tuple[tuple[str, ...], ...] = (
    ("LLEN", "celery"),
    ("HLEN", "unacked"),
    ("ZCARD", "unacked_index"),
    ("SCARD", "_kombu.binding.celery"),
    ("EXISTS", "celery"),
    ("SCAN", "0", "COUNT", "1"),
    ("TIME",),
)
#: Seconds by which two clocks may differ.
_CLOCKS = 5.0
#: Lists of what could not be routed, and of what is not a message; workers bring both to the dead letters.
_STRANDED = ("celery.undeliverable", "celery.undecodable")


class Broker:
    """A client of the configured broker, made by kombu just as a worker makes it.

    Args:
        app: the Celery application.
        timeout: seconds that connecting, or one command, may take.
    """

    def __init__(self, app: Any, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self.connection = app.connection_for_write()
        # A probe must end: the workers' own, longer limits are for workers.
        self.connection.transport_options.update(socket_timeout=timeout, socket_connect_timeout=timeout)
        self.urls = [url.strip() for url in str(app.conf.broker_url or "").split(";") if url.strip()]

    @cached_property
    def channel(self) -> Any:
        """A kombu channel; made without kombu's retries, which would hide the first and true reason of a failure."""
        return self.connection.channel()

    @property
    def client(self) -> Any:
        """The redis-py client of the channel."""
        return self.channel.client

    def check(self, report: CheckReport, facts: Mapping[str, Any] | None) -> None:
        """Run all checks of the broker."""
        report.run(
            "broker.reachable",
            "every server of broker_url accepts a connection",
            self._reachable,
            remedy="Start Redis on that host, let it listen on this address (redis_bind_addresses, redis_port), "
            "open the firewall between both, or correct broker_url (CELERY_BROKER_URL).",
        )
        report.run(
            "broker.authenticated",
            "user and password of broker_url are accepted, and PING is answered",
            self._authenticated,
            remedy="See the log of redis-server on that host.",
            needs=["broker.reachable"],
        )
        report.run(
            "broker.tls",
            f"with rediss:// the server is verified, and its certificate good for {LEAST_DAYS} days",
            self._encrypted,
            remedy=RENEW,
            needs=["broker.authenticated"],
        )
        report.run(
            "broker.authorised",
            "the user may run the commands that Celery needs",
            self._authorised,
            remedy="Give the user the rights that the redis role declares: run the site playbook on the redis host.",
            needs=["broker.authenticated"],
        )
        report.run(
            "broker.cannot_evict",
            "maxmemory_policy noeviction",
            lambda: self._cannot_evict(facts),
            remedy="Set maxmemory-policy noeviction: run the site playbook against the redis host. "
            "With any other policy Redis deletes waiting tasks when its memory is full.",
            needs=["broker.authenticated"],
        )

        report.run(
            "broker.clock",
            f"less than {_CLOCKS:g} s between this host and Redis",
            self._clock,
            remedy="Keep the clocks of all hosts in step (chrony, systemd-timesyncd): ETAs, expiries and the times of "
            "unacknowledged messages are compared with them.",
            needs=["broker.authenticated"],
        )
        report.run(
            "broker.stranded",
            "no message that could not be routed or read",
            self._stranded,
            remedy="Workers with worker_consumer = 'celery_hybrid.worker.consumer:Consumer' bring these to RabbitMQ "
            "within a minute: see that they run and that RabbitMQ is reached; then 'celery dead-letters list'.",
            needs=["broker.authenticated"],
        )

    def check_bindings(self, report: CheckReport, queues: Sequence[str]) -> None:
        """Look for the bindings of queues, which workers make when they begin to consume."""
        report.run(
            "workers.bindings",
            "every queue is bound to its exchange",
            lambda: self._bound(queues),
            remedy="Redis has lost them (a flush, an eviction), and messages sent to the exchange would be dropped. "
            "Workers make them again within a minute, or when they are restarted.",
            needs=["broker.authorised", "workers.answer"],
        )

    def close(self) -> None:
        """Drop the connections."""
        self.connection.release()

    def _reachable(self) -> str:
        if not self.urls:
            raise Failed("no broker_url is configured", "Set CELERY_BROKER_URL in the environment file.")
        found = []
        for url in self.urls:
            parts = _parse(url, "broker_url")
            scheme = str(parts["transport"])
            if scheme not in PORTS:
                raise Failed(
                    f"broker_url begins with {scheme}://, which is not Redis",
                    "Set CELERY_BROKER_URL in the environment file to redis://… (worker_broker_url).",
                )
            found.append(reach(parts["hostname"] or "127.0.0.1", int(parts["port"] or PORTS[scheme]), self._timeout))
        return ", ".join(found)

    def _authenticated(self) -> str:
        import redis

        user = _parse(self.urls[0], "broker_url")["userid"] or "default"
        try:
            answered = self.client.ping()
        except redis.exceptions.NoPermissionError as exc:
            raise Failed(
                f"NOPERM: user {user!r} was let in but may not run what a connection needs: {exc}",
                "Give the user the rights that the redis role declares: run the site playbook.",
            ) from exc
        except redis.exceptions.AuthenticationError as exc:
            raise Failed(
                f"Redis refuses the password of user {user!r}: {exc}",
                "Make the password in CELERY_BROKER_URL (redis_password) the one that the Redis host has: "
                "run the site playbook against the redis and worker hosts.",
            ) from exc
        except redis.exceptions.ResponseError as exc:
            raise Failed(f"Redis refuses user {user!r}: {exc}") from exc
        except redis.exceptions.TimeoutError as exc:
            raise Failed(
                f"Redis accepts the connection but does not answer within {self._timeout:g} s",
                "Look for a blocked or overloaded redis-server, or for something else that listens on this port.",
            ) from exc
        except redis.exceptions.ConnectionError as exc:
            raise Failed(
                f"the connection breaks before PING is answered: {exc}",
                "Look whether TLS is spoken on one side only (redis:// or rediss://), at ssl_ca_certs and the name in "
                "the certificate, or whether maxclients is reached; see the log of redis-server.",
            ) from exc
        if not answered:
            raise Failed(f"PING was answered with {answered!r}")
        return f"PONG for user {user}"

    def _encrypted(self) -> str:
        if not any(url.startswith("rediss://") for url in self.urls):
            return "unencrypted, as broker_url says"
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            return shaken(connection._sock)
        finally:
            pool.release(connection)

    def _authorised(self) -> str:
        import redis

        # kombu's client prefixes the keys of some commands only.
        client: Any = redis.Redis(connection_pool=self.client.connection_pool)
        prefix = self.channel.global_keyprefix
        refused = []
        for command, *arguments in _PROBES:
            key = [f"{prefix}{arguments[0]}"] if arguments and command != "SCAN" else arguments[:1]
            try:
                client.execute_command(command, *key, *arguments[1:])
            except redis.exceptions.NoPermissionError:
                refused.append(command)
            except redis.exceptions.ResponseError as exc:
                # A key of another type is a mistake of others, but it shows that the command is allowed.
                if not str(exc).startswith("WRONGTYPE"):
                    raise
        if refused:
            raise Failed(f"NOPERM for {', '.join(refused)}")
        return f"{len(_PROBES)} commands allowed"

    def _cannot_evict(self, facts: Mapping[str, Any] | None) -> str:
        import redis

        try:
            policy = self.client.info("memory").get("maxmemory_policy")
            source = "as the server says"
        except redis.exceptions.NoPermissionError:
            if not facts or not facts.get("maxmemory_policy"):
                why = (facts or {}).get("error") or "no facts of the Redis host were given"
                raise Failed(
                    f"undecided: a worker's rights do not show it, and {why}",
                    "Run playbooks/verify.yml with the redis group in the inventory and REDIS_ADMIN_PASSWORD set; it "
                    "asks the Redis host as its administrator.",
                ) from None
            policy = facts["maxmemory_policy"]
            source = f"as {facts.get('host') or 'the Redis host'} says"
        if policy != "noeviction":
            raise Failed(f"{policy}, {source}")
        return f"{policy}, {source}"

    def _clock(self) -> str:
        before = time.time()
        seconds, microseconds = self.client.time()
        here = (before + time.time()) / 2
        ahead = here - (seconds + microseconds / 1e6)
        told = f"{abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} Redis"
        if abs(ahead) >= _CLOCKS:
            raise Failed(told)
        return told

    def _bound(self, queues: Sequence[str]) -> str:
        lost, bound = [], 0
        for name in queues:
            queue = self._app.amqp.queues.get(name)
            if queue is None or not queue.exchange or not queue.exchange.name:
                continue
            table = self.channel.get_table(queue.exchange.name)
            if any(entry[2] == name for entry in table):
                bound += 1
            else:
                lost.append(f"{name} to {queue.exchange.name}")
        if lost:
            raise Failed(f"not bound: {', '.join(lost)}")
        return counted(bound, "bindings")

    def _stranded(self) -> str:
        found = {key: self.client.llen(key) for key in _STRANDED}
        if any(found.values()):
            raise Failed(", ".join(f"{count} in {key}" for key, count in found.items() if count))
        return "nothing"


def _parse(url: str, setting: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as exc:
        raise Failed(
            f"{setting} cannot be read: {describe(exc)}",
            "Write it as redis://, user, password, host, port and database; percent-encode special characters.",
        ) from exc

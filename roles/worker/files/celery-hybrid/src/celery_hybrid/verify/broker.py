"""Checks of the broker, Redis, over the very URL and options that the workers use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from kombu.utils.url import parse_url

from .report import Failed, Report, describe
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


class Broker:
    """A client of the configured broker, made by kombu just as a worker makes it.

    Args:
        app: the Celery application.
        timeout: seconds that connecting, or one command, may take.
    """

    def __init__(self, app: Any, timeout: float) -> None:
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

    def check(self, report: Report, facts: Mapping[str, Any] | None) -> None:
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
            return "in clear, as broker_url says"
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            return shaken(connection._sock)
        finally:
            pool.release(connection)

    def _authorised(self) -> str:
        import redis

        refused = []
        for command in _PROBES:
            try:
                self.client.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                refused.append(command[0])
            except redis.exceptions.ResponseError as exc:
                # A key of another type is somebody's mistake, but it shows that the command is allowed.
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


def _parse(url: str, setting: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as exc:
        raise Failed(
            f"{setting} cannot be read: {describe(exc)}",
            "Write it as redis://, user, password, host, port and database; percent-encode special characters.",
        ) from exc

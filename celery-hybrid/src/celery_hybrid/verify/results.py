"""Checks of the result store, RabbitMQ, over a connection of its own: py-amqp, nothing of the backend's code.

What must exist is read from the file that the ``rabbitmq`` role declares it from.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import amqp
from kombu.utils.url import parse_url

from celery_hybrid import names
from celery_hybrid.names import ARCHIVE_PREFIX, REPLY_PREFIX
from celery_hybrid.rabbitmq.objects import FORMER_QUEUES, arguments, default, objects
from celery_hybrid.terminal import counted

from .report import CheckReport, Failed, describe
from .tcp import LEAST_DAYS, RENEW, reach, shaken

EXCHANGE = names.RESULTS_EXCHANGE
STREAM = f"{ARCHIVE_PREFIX}{{}}"
DLX = names.DEAD_LETTER_EXCHANGE
DEAD_LETTERS = names.DEAD_LETTER_QUEUE
DEFAULT_PARTITIONS: int = default("partitions")

_STREAM_NAME = re.compile(rf"^{re.escape(ARCHIVE_PREFIX)}(\d+)$")
_PORTS = {"amqp": 5672, "amqps": 5671}
_AGE_UNITS = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3600, "m": 60, "s": 1}
#: The remedy for whatever is not a RabbitMQ URL.
SET_RESULT_BACKEND = (
    "Set CELERY_RESULT_BACKEND in the environment file to amqp://… (the worker role does: worker_result_backend)."
)
NO_FACTS = (
    "Run playbooks/verify.yml with the rabbitmq group in the inventory and RABBITMQ_MONITORING_PASSWORD set; "
    "it asks the management API of the RabbitMQ host."
)
_SITE = "Declare it again: run the site playbook against the rabbitmq host."


class ResultChecks:
    """Plain AMQP connections to where the results are kept.

    Args:
        url: ``result_backend``; several URLs separated by ``;`` are nodes of one cluster.
        options: ``result_backend_transport_options``.
        timeout: seconds that connecting, or one command, may take.
        facts: what the management API says of the virtual host, or None.
    """

    def __init__(
        self, url: str | None, options: Mapping[str, Any] | None, timeout: float, facts: Mapping[str, Any] | None
    ) -> None:
        self._urls = [_without_class(each.strip()) for each in (url or "").split(";") if each.strip()]
        self._options = dict(options or {})
        self._timeout = timeout
        self._facts = facts

    @property
    def on_rabbitmq(self) -> bool:
        """Whether the URL is one of RabbitMQ's."""
        return bool(self._urls) and all(url.startswith(("amqp://", "amqps://")) for url in self._urls)

    @property
    def partitions(self) -> int:
        """The configured number of streams."""
        return int(self._options.get("partitions", DEFAULT_PARTITIONS))

    def check(self, report: CheckReport, result_expires: float | None) -> None:
        """Run all checks of the result store."""
        report.run(
            "results.reachable",
            "every server of result_backend accepts a connection",
            self._reachable,
            remedy="Start RabbitMQ on that host, let it listen on this address (rabbitmq_bind_addresses, "
            "rabbitmq_port), open the firewall between both, or correct result_backend (CELERY_RESULT_BACKEND).",
        )
        report.run(
            "results.authenticated",
            "user and password of result_backend are accepted in its virtual host",
            self._authenticated,
            remedy="See the log of RabbitMQ on that host.",
            needs=["results.reachable"],
        )
        there = ["results.authenticated"]
        report.run(
            "results.tls",
            f"with amqps:// the server is verified, and its certificate good for {LEAST_DAYS} days",
            self._encrypted,
            remedy=RENEW,
            needs=there,
        )
        streams = f"{STREAM.format(0)} to {STREAM.format(self.partitions - 1)}"
        for name, expected, probe in (
            ("results.exchange", f"{EXCHANGE} exists: direct, durable, not auto_delete", self._exchange),
            ("results.streams", f"{streams} exist: streams, durable, not auto_delete", self._streams),
            ("results.partitions", f"exactly {self.partitions} streams, as configured", self._partitions),
            (
                "results.bindings",
                f"each stream is bound to {EXCHANGE} by its own name, and nothing else",
                self._bindings,
            ),
            (
                "results.expiry",
                "each stream keeps records at least for result_expires",
                lambda: self._expiry(result_expires),
            ),
            ("dead_letters.exchange", f"{DLX} exists: topic, durable, not auto_delete", self._dlx),
            ("dead_letters.queue", f"{DEAD_LETTERS}: quorum, durable, bound to {DLX} with #", self._dead_letters),
        ):
            report.run(name, expected, probe, remedy=_SITE, needs=there)

    @contextmanager
    def connect(self, login: tuple[str, str] | None = None) -> Iterator[amqp.Connection]:
        """A connection to the first node that lets this user in, or one with another name and password."""
        last: Exception | None = None
        for url in self._urls:
            connection = self._connection(url, login)
            try:
                connection.connect()
            except (OSError, amqp.AMQPError) as exc:
                connection.collect()
                last = exc
                continue
            try:
                yield connection
            finally:
                try:
                    connection.close()
                except (OSError, amqp.AMQPError):
                    connection.collect()
            return
        raise last or Failed("no result_backend is configured")

    def _connection(self, url: str, login: tuple[str, str] | None = None) -> amqp.Connection:
        parts = _parse(url)
        user, password = login or (parts["userid"] or "guest", parts["password"] or "guest")
        secure: dict[str, Any] | bool = False
        if parts["transport"] == "amqps":
            secure = {"server_hostname": parts["hostname"], "cert_reqs": ssl.CERT_REQUIRED}
            for name in ("ca_certs", "certfile", "keyfile"):
                value = parts.get(name) or self._options.get(name)
                if value:
                    secure[name] = value
        port = int(parts["port"] or _PORTS[parts["transport"]])
        return amqp.Connection(
            host=f"{parts['hostname']}:{port}",
            userid=user,
            password=password,
            virtual_host=parts["virtual_host"] or "/",
            ssl=secure,
            connect_timeout=self._timeout,
            read_timeout=self._timeout,
            write_timeout=self._timeout,
            client_properties={"connection_name": "celery_hybrid.verify"},
        )

    def _reachable(self) -> str:
        if not self._urls:
            raise Failed(
                "no result_backend is configured",
                SET_RESULT_BACKEND,
            )
        found = []
        for url in self._urls:
            parts = _parse(url)
            if parts["transport"] not in _PORTS:
                raise Failed(
                    f"result_backend begins with {parts['transport']}://, so results do not go to RabbitMQ",
                    SET_RESULT_BACKEND,
                )
            port = int(parts["port"] or _PORTS[parts["transport"]])
            found.append(reach(parts["hostname"] or "127.0.0.1", port, self._timeout))
        return ", ".join(found)

    def _authenticated(self) -> str:
        told = []
        for url in self._urls:
            parts = _parse(url)
            user, vhost = parts["userid"] or "guest", parts["virtual_host"] or "/"
            connection = self._connection(url)
            try:
                connection.connect()
                version = connection.server_properties.get("version", "")
                told.append(f"RabbitMQ {version}, user {user}, virtual host {vhost}")
            except amqp.AccessRefused as exc:
                raise Failed(
                    f"RabbitMQ refuses the password of user {user!r} (or does not know this user)",
                    "Make the password in CELERY_RESULT_BACKEND (rabbitmq_worker_password) the one that RabbitMQ has: "
                    "run the site playbook against the rabbitmq and worker hosts.",
                ) from exc
            except amqp.NotAllowed as exc:
                if "not found" in str(exc):
                    raise Failed(
                        f"RabbitMQ has no virtual host {vhost!r}",
                        "Correct the last part of CELERY_RESULT_BACKEND (rabbitmq_vhost), or run the site playbook "
                        "against the rabbitmq host.",
                    ) from exc
                raise Failed(
                    f"user {user!r} has no rights in the virtual host {vhost!r}",
                    "Give it the rights that the rabbitmq role declares: run the site playbook.",
                ) from exc
            except ssl.SSLError as exc:
                raise Failed(
                    f"TLS fails: {describe(exc)}",
                    "Look whether this port speaks TLS (amqps://), and at ca_certs and the name in the certificate.",
                ) from exc
            except TimeoutError as exc:
                raise Failed(
                    f"RabbitMQ accepts the connection but does not answer within {self._timeout:g} s",
                    "Look for a blocked or starting RabbitMQ, or for something else that listens on this port.",
                ) from exc
            except (OSError, amqp.AMQPError) as exc:
                raise Failed(
                    f"the connection breaks before RabbitMQ lets the user in: {describe(exc)}",
                    "Look whether TLS is spoken on one side only (amqp:// or amqps://); see the log of RabbitMQ.",
                ) from exc
            finally:
                try:
                    connection.close()
                except (OSError, amqp.AMQPError):
                    connection.collect()
        return "; ".join(told)

    def _encrypted(self) -> str:
        if not any(url.startswith("amqps://") for url in self._urls):
            return "unencrypted, as result_backend says"
        with self.connect() as connection:
            return shaken(connection.transport.sock)

    def _exchange(self) -> str:
        with self.connect() as connection:
            try:
                connection.channel().exchange_declare(EXCHANGE, _kind("exchanges", EXCHANGE), passive=True)
            except amqp.NotFound as exc:
                raise Failed(f"{EXCHANGE} does not exist") from exc
        return self._declared_exchange(EXCHANGE, _kind("exchanges", EXCHANGE))

    def _streams(self) -> str:
        with self.connect() as connection:
            names = map(STREAM.format, range(self.partitions))
            missing = [name for name in names if not _exists(connection, name)]
        if missing:
            raise Failed(f"missing: {', '.join(missing)}")
        queues = {queue["name"]: queue for queue in self._known("queues")}
        wrong = []
        kind = _kind("queues", STREAM.format(0))
        for name in map(STREAM.format, range(self.partitions)):
            wrong += _differences(name, queues.get(name), {"durable": True, "auto_delete": False}, kind)
        if wrong:
            raise Failed("; ".join(wrong), _REDECLARE)
        return f"{self.partitions} durable streams"

    def _partitions(self) -> str:
        if (self._facts or {}).get("queues") is None:
            with self.connect() as connection:
                more = _exists(connection, STREAM.format(self.partitions))
            count = f"more than {counted(self.partitions, 'streams')}" if more else counted(self.partitions, "streams")
            wrong = more
        else:
            numbers = [match for queue in self._known("queues") if (match := _STREAM_NAME.match(queue["name"]))]
            wrong = len(numbers) != self.partitions
            count = counted(len(numbers), "streams")
        if wrong:
            raise Failed(
                f"RabbitMQ has {count}, the configuration says {self.partitions}",
                "Set partitions in result_backend_transport_options (rabbitmq_partitions) to the same number "
                "everywhere, or readers search the wrong stream for results.",
            )
        return count

    def _bindings(self) -> str:
        found = {
            (str(each["destination"]), str(each["routing_key"]))
            for each in self._known("bindings")
            if each["source"] == EXCHANGE and each["destination_type"] == "queue"
        }
        declared = {
            (each["destination"], each["routing_key"])
            for each in objects(partitions=self.partitions)["bindings"]
            if each["source"] == EXCHANGE
        }
        streams = {each for each in declared if each[0].startswith(ARCHIVE_PREFIX)}
        missing = sorted(name for name, _ in streams - found)
        # Clients bind their reply queues, each by its own name.
        strange = sorted(
            f"{queue} by {key!r}"
            for queue, key in found - declared
            if not (queue == key and (queue in FORMER_QUEUES or queue.startswith(REPLY_PREFIX)))
        )
        if missing:
            raise Failed(f"not bound: {', '.join(missing)}")
        if strange:
            raise Failed(f"bound, and not declared: {', '.join(strange)}", "Remove the binding in RabbitMQ.")
        return f"{len(streams)} bindings"

    def _expiry(self, result_expires: float | None) -> str:
        ages: dict[str, str | None] = {}
        for queue in self._known("queues"):
            if _STREAM_NAME.match(queue["name"]):
                arguments = queue.get("arguments") or {}
                ages[queue["name"]] = self._policy(queue).get("max-age") or arguments.get("x-max-age")
        without = sorted(name for name, age in ages.items() if not age)
        if without:
            raise Failed(f"no max-age, so records are kept indefinitely: {', '.join(without)}")
        if not ages:
            raise Failed("there are no streams")
        for name, age in sorted(ages.items()):
            seconds = age_seconds(str(age))
            if seconds is None:
                raise Failed(f"{name} has the unreadable max-age {age!r}")
            if result_expires and seconds < result_expires:
                raise Failed(
                    f"{name} drops records after {age}, result_expires is {result_expires:g} s",
                    "Set rabbitmq_result_expires to at least result_expires and run the site playbook.",
                )
        return f"max-age {', '.join(sorted({str(age) for age in ages.values()}))}"

    def _dlx(self) -> str:
        return self._declared_exchange(DLX, _kind("exchanges", DLX))

    def _dead_letters(self) -> str:
        queues = {queue["name"]: queue for queue in self._known("queues")}
        if DEAD_LETTERS not in queues:
            raise Failed(f"{DEAD_LETTERS} does not exist")
        queue, kind = queues[DEAD_LETTERS], _kind("queues", DEAD_LETTERS)
        wrong = _differences(DEAD_LETTERS, queue, {"durable": True, "auto_delete": False}, kind)
        if wrong:
            raise Failed("; ".join(wrong), _REDECLARE)
        [declared] = (each for each in objects()["bindings"] if each["destination"] == DEAD_LETTERS)
        key = declared["routing_key"]
        bound = any(
            each["source"] == declared["source"] and each["destination"] == DEAD_LETTERS and each["routing_key"] == key
            for each in self._known("bindings")
        )
        if not bound:
            raise Failed(f"{DEAD_LETTERS} is not bound to {DLX} with {key}: dead letters would be dropped")
        self._readings(queue)
        return f"{kind}, durable, bound with {key}"

    def _readings(self, queue: Mapping[str, Any]) -> None:
        """Fail when a dead letter could be deleted by reading it: each reading counts as a delivery."""
        wanted = objects()
        [declared] = (each for each in wanted["queues"] if each["name"] == DEAD_LETTERS)
        least = arguments(declared, wanted["policies"])["x-delivery-limit"]
        limits = self._policy(queue).get("delivery-limit"), (queue.get("arguments") or {}).get("x-delivery-limit")
        limit = min((int(each) for each in limits if each is not None), default=None)
        if limit is None or 0 <= limit < least:
            raise Failed(
                f"the delivery limit of {DEAD_LETTERS} is {'not set' if limit is None else limit}, not {least}: "
                "RabbitMQ 4 deletes a dead letter that was read more often than that, or 20 times when it is not set",
                "Run the site playbook against the rabbitmq host; without the role, set the policy that the README of "
                "celery-hybrid names for queues of earlier versions.",
            )

    def _declared_exchange(self, name: str, kind: str) -> str:
        exchanges = {exchange["name"]: exchange for exchange in self._known("exchanges")}
        if name not in exchanges:
            raise Failed(f"{name} does not exist")
        wanted = {"type": kind, "durable": True, "auto_delete": False, "internal": False}
        wrong = _differences(name, exchanges[name], wanted, None)
        if wrong:
            raise Failed("; ".join(wrong), _REDECLARE)
        return f"{kind}, durable"

    def _known(self, kind: str) -> list[dict[str, Any]]:
        """The facts of one kind of object; a Failed verdict when there are none."""
        facts = (self._facts or {}).get(kind)
        if facts is None:
            why = (self._facts or {}).get("error") or "no facts of the RabbitMQ host were given"
            raise Failed(f"undecided: a worker's rights do not show it, and {why}", NO_FACTS)
        try:
            return [dict(each) for each in facts]
        except (TypeError, ValueError) as exc:
            raise Failed(f"the facts about {kind} are malformed: {describe(exc)}", NO_FACTS) from exc

    def _policy(self, queue: Mapping[str, Any]) -> dict[str, Any]:
        """The policy that is in force for a queue."""
        if queue.get("effective_policy_definition"):
            return dict(queue["effective_policy_definition"])
        # For some seconds after a start the management API does not know what is in force: work it out.
        fitting = [
            policy
            for policy in (self._facts or {}).get("policies") or []
            if policy.get("apply-to") in {"queues", "all", "streams"} and re.search(policy["pattern"], queue["name"])
        ]
        fitting.sort(key=lambda policy: int(policy.get("priority", 0)))
        return dict(fitting[-1]["definition"]) if fitting else {}


def _kind(objects_of: str, name: str) -> str:
    """The declared type of an exchange or a queue."""
    return next(str(each["type"]) for each in objects()[objects_of] if each["name"] == name)


_REDECLARE = (
    "RabbitMQ cannot change this in place: make sure that nothing in it is needed, delete it, and run the site "
    "playbook."
)


def age_seconds(text: str) -> int | None:
    """A stream's ``max-age``, such as ``7D`` or ``86400s``, in seconds; None when it is none."""
    match = re.fullmatch(r"(\d+)([YMDhms])", text)
    return int(match[1]) * _AGE_UNITS[match[2]] if match else None


def _differences(
    name: str, found: Mapping[str, Any] | None, wanted: Mapping[str, Any], queue_type: str | None
) -> list[str]:
    if found is None:
        return [f"{name} does not exist"]
    other = [f"{name}: {key} is {found.get(key)}" for key, value in wanted.items() if found.get(key) != value]
    if queue_type:
        kind = found.get("type") or (found.get("arguments") or {}).get("x-queue-type", "classic")
        if kind != queue_type:
            other.append(f"{name}: type is {kind}")
    return other


def _without_class(url: str) -> str:
    """``amqp://…`` of ``package.module:Class+amqp://…``, Celery's way to name a backend by its class."""
    scheme, separator, rest = url.partition("://")
    return scheme.rpartition("+")[2] + separator + rest


def _exists(connection: amqp.Connection, queue: str) -> bool:
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except amqp.NotFound:
        return False  # RabbitMQ has closed the channel
    channel.close()
    return True


def _parse(url: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as exc:
        raise Failed(
            f"result_backend cannot be read: {describe(exc)}",
            "Write it as amqp://, user, password, host, port and virtual host; percent-encode special characters.",
        ) from exc

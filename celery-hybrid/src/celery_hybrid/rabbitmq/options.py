"""The settings of the backend: ``result_backend_transport_options``, typed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from celery_hybrid.errors import OptionError
from celery_hybrid.rabbitmq.objects import default

SETTING = "result_backend_transport_options"

#: The slowest line to RabbitMQ that a large record is given the time for, in bytes a second.
_SLOWEST = 1_000_000

BLOCK, DROP_OLDEST = "block", "drop_oldest"


def _option(default: Any, minimum: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"minimum": minimum, "choices": choices})


@dataclass(frozen=True)
class Options:
    """Settings of the backend. Durations are seconds, sizes are bytes.

    Attributes:
        partitions: number of archive streams. It decides where an id is looked up, so it must be the same
            in every process and agree with what RabbitMQ has.
        declare: declare the exchange, the streams and the dead-letter queue when they are missing. For those
            who have no role or person to do it; the user then needs the right to configure ``celery.*``.
        connect_timeout: for reaching one host of the URL.
        socket_timeout: for one answer of RabbitMQ.
        confirm_timeout: for the confirmation of one record; a second more for each megabyte of it.
        lookup_timeout: for one look-up by id.
        heartbeat: interval of the AMQP heartbeat; 0 switches it off.
        poll_interval: first pause between looks into the archive while ``get()`` waits; it doubles.
        poll_interval_max: longest such pause.
        index_bytes: memory that the index of the archive may take in one process.
        reply_buffer_bytes: memory for results that arrive before anybody waits for them.
        reply_expires: a reply queue disappears when it was unused for so long.
        reply_max_length: a reply queue drops its oldest message beyond this number. Nothing is lost by that:
            the archive has it.
        push_started: push STARTED to the client as well, for ``get(on_message=…)``; its state can be read in any case.
        survive_power_loss: put each record into the journal as well, so that it survives when the power of a single
            node fails. The same in every process; it costs about half of the speed.
        outbox: file for what RabbitMQ does not take, in the processes of a worker. ``$STATE_DIRECTORY`` of systemd or
            the user's state directory when it is None, no outbox when it is empty.
        outbox_max_records: bound of the number of records in it.
        outbox_max_bytes: bound of their bytes.
        outbox_full: what happens beyond: ``block`` lets the tasks wait, ``drop_oldest`` loses the oldest, loudly.
        connection_name: shown in RabbitMQ's list of connections.
        login_method: ``PLAIN``, or ``EXTERNAL`` when the client certificate says who it is.
        ca_certs: file of the certificate authorities that may sign the server's certificate; the system's when unset.
        certfile: client certificate.
        keyfile: key of the client certificate.
    """

    partitions: int = _option(default("partitions"), minimum=1)
    declare: bool = _option(False)
    connect_timeout: float = _option(3.0, minimum=0.1)
    socket_timeout: float = _option(3.0, minimum=0.1)
    confirm_timeout: float = _option(3.0, minimum=0.1)
    lookup_timeout: float = _option(30.0, minimum=0.1)
    heartbeat: int = _option(30, minimum=0)
    poll_interval: float = _option(1.0, minimum=0.05)
    poll_interval_max: float = _option(5.0, minimum=0.05)
    index_bytes: int = _option(64 * 1024 * 1024, minimum=64 * 1024)
    reply_buffer_bytes: int = _option(16 * 1024 * 1024, minimum=0)
    reply_expires: float = _option(1800.0, minimum=10)
    reply_max_length: int = _option(100_000, minimum=1)
    push_started: bool = _option(False)
    survive_power_loss: bool = _option(False)
    outbox: str | None = _option(None)
    outbox_max_records: int = _option(1_000_000, minimum=1)
    outbox_max_bytes: int = _option(1024 * 1024 * 1024, minimum=64 * 1024)
    outbox_full: str = _option(BLOCK, choices=(BLOCK, DROP_OLDEST))
    connection_name: str | None = _option(None)
    login_method: str = _option("PLAIN", choices=("PLAIN", "EXTERNAL"))
    ca_certs: str | None = _option(None)
    certfile: str | None = _option(None)
    keyfile: str | None = _option(None)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> Options:
        """Check ``result_backend_transport_options`` and make options of it.

        Raises:
            OptionError: an unknown name, a wrong type, or a value out of range.
        """
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise OptionError(f"{SETTING} must be a dict of options, not {type(values).__name__}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        hints = get_type_hints(cls)
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in fields:
                raise OptionError(_unknown(str(name), tuple(fields)))
            checked[name] = _checked(name, value, hints[name], fields[name].metadata)
        options = cls(**checked)
        if options.poll_interval_max < options.poll_interval:
            raise OptionError(f"{SETTING}['poll_interval_max'] must not be shorter than poll_interval.")
        if options.keyfile and not options.certfile:
            raise OptionError(f"{SETTING}['keyfile'] needs certfile, the certificate that it is the key of.")
        return options

    def confirm_time(self, size: int) -> float:
        """Return the seconds that RabbitMQ is given to confirm a record.

        Args:
            size: of the record, in bytes; a large one takes its time on a slow line.
        """
        return self.confirm_timeout + size / _SLOWEST

    def merged(self, values: Mapping[str, str]) -> Options:
        """Return these options with those of the URL's query laid over them."""
        changes: dict[str, Any] = dict(values)
        return dataclasses.replace(self, **changes)


def _unknown(name: str, valid: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, valid, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Valid names: {', '.join(sorted(valid))}."
    return f"{SETTING} has no option {name!r}. {hint}"


def _checked(name: str, value: Any, hint: Any, rules: Mapping[str, Any]) -> Any:
    allowed, words = _KINDS[hint]
    wrong = not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool)
    if wrong:
        raise OptionError(f"{SETTING}[{name!r}] must be {words}, not {type(value).__name__}.")
    minimum, choices = rules.get("minimum"), rules.get("choices")
    if minimum is not None and value < minimum:
        raise OptionError(f"{SETTING}[{name!r}] must be at least {minimum}, not {value}.")
    if choices and value not in choices:
        raise OptionError(f"{SETTING}[{name!r}] must be one of {', '.join(choices)}, not {value!r}.")
    return float(value) if hint is float else value


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number of seconds"),
    str: ((str,), "a string"),
    str | None: ((str, type(None)), "a string"),
}

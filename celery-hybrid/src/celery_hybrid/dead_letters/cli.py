"""``celery dead-letters``: list, show, replay and discard dead letters.

Nothing is removed from RabbitMQ before its copy is safe elsewhere: in Redis, or on the disk. A command that is
interrupted can be given again: a letter that Redis or the file has already is recognised.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import json
import os
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import amqp
import click
from celery.bin.base import handle_preload_options

from celery_hybrid.dead_letters.letter import (
    LOST_HEADER,
    REASONS,
    REPLAYS_HEADER,
    UNROUTABLE,
    DeadLetter,
)
from celery_hybrid.dead_letters.replay import ReplayedError, send
from celery_hybrid.errors import HybridError, OptionError, ResultStoreError
from celery_hybrid.files import sync_folder_of
from celery_hybrid.names import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, ID_HEADER, TASK_KEY_PREFIX
from celery_hybrid.rabbitmq import urls
from celery_hybrid.rabbitmq.confirms import ConfirmedChannel
from celery_hybrid.rabbitmq.connection import Servers, close_connection, translated
from celery_hybrid.rabbitmq.options import SETTING, Options
from celery_hybrid.terminal import counted, printable

_SPAN = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PUT_BACK = "x-put-back"
_PROPERTIES = ("content_type", "content_encoding", "message_id", "correlation_id", "type", "timestamp", "delivery_mode")


@dataclass(frozen=True)
class Entry:
    """A message in the queue of dead letters.

    Attributes:
        message: as RabbitMQ has it.
        letter: of a task; None for a result that was refused, or whatever else is there.
        id: names it.
        reason: why it is there.
    """

    message: amqp.Message
    letter: DeadLetter | None
    id: str
    reason: str

    @classmethod
    def of(cls, message: amqp.Message) -> Entry:
        """Return the entry of a message; whatever it is."""
        # Only workers may publish to the exchange with this key: whatever comes another way has only the looks of one.
        came_by = _mapping(message.delivery_info).get("routing_key")
        if came_by is None or str(came_by).startswith(TASK_KEY_PREFIX):
            with contextlib.suppress(ValueError):
                letter = DeadLetter.from_body(message.body)
                return cls(message, letter, letter.id, letter.reason)
        headers = _mapping(message.properties.get("application_headers"))
        name = headers.get(ID_HEADER) or message.properties.get("message_id")
        name = name or message.properties.get("correlation_id") or "(no id)"
        death = headers.get("x-death")
        last = death[0] if isinstance(death, list) and death else None
        reason = f"rabbitmq.{_mapping(last).get('reason', 'unknown')}" if last else came_by or "unknown"
        return cls(message, None, str(name), str(reason))

    @property
    def put_back(self) -> bool:
        """Whether a person has brought it back from a file."""
        return _PUT_BACK in _mapping(self.message.properties.get("application_headers"))

    @property
    def at(self) -> datetime:
        """When it was dead-lettered; 1970 when it does not say."""
        with contextlib.suppress(ValueError):
            if self.letter is not None:
                at = datetime.fromisoformat(self.letter.failed)
                return at if at.tzinfo else at.replace(tzinfo=UTC)
        stamp = self.message.properties.get("timestamp")
        with contextlib.suppress(ValueError, OverflowError, OSError, TypeError):
            return datetime.fromtimestamp(stamp, UTC)
        return datetime.fromtimestamp(0, UTC)

    def line(self) -> str:
        """Return it in one line."""
        letter = self.letter
        when = f"{self.at:%Y-%m-%d %H:%M:%S}"
        reason = printable(self.reason)
        if letter is None:
            return f"{when}  {reason:12} {printable(self.id)}"
        task, queue, name = (printable(text) for text in (letter.task or "-", letter.queue, letter.id))
        replays = f"  replayed {letter.replays}x" if letter.replays else ""
        first = next(iter(letter.exception.splitlines()), "")
        exception = printable(first[:100]) if first else REASONS.get(letter.reason, "")
        return f"{when}  {reason:12} {task}  {queue}  {name}{replays}\n    {exception}"

    def dump(self) -> dict[str, Any]:
        """Return all of it for a file, to the byte."""
        body = self.message.body
        raw = body.encode() if isinstance(body, str) else bytes(body or b"")
        properties = {name: self.message.properties[name] for name in _PROPERTIES if name in self.message.properties}
        headers = self.message.properties.get("application_headers") or {}
        return {
            "id": self.id,
            "reason": self.reason,
            "routing_key": (self.message.delivery_info or {}).get("routing_key") or f"task.{self.reason}",
            "properties": json.loads(json.dumps(properties, default=str)),
            "headers": json.loads(json.dumps(headers, default=str)),
            "body": base64.b64encode(raw).decode(),
        }


class DeadLetterQueue:
    """The queue of dead letters, open for one command. What is not removed is there again when it ends.

    Args:
        url: of a user who may read the queue ``celery.dead_letters`` and write to the exchange ``celery.dlx``.
        options: of the result store: timeouts and TLS.
        login: name and password of that user, when the URL is another's.
    """

    def __init__(self, url: str, options: Options, login: tuple[str, str] | None = None) -> None:
        servers, query = urls.parse(url)
        if login:
            servers = [replace(server, user=login[0], password=login[1]) for server in servers]
        # Heartbeats are not answered between two letters; the kernel notices a dead connection.
        self._options = replace(options.merged(query), heartbeat=0)
        self._connection = Servers(servers, self._options).connect("dead letters")
        with translated("the dead letters"):
            self._channel = self._connection.channel()
            self._out = ConfirmedChannel(self._connection)

    def __enter__(self) -> DeadLetterQueue:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            # Waits for the answer, so that the next command finds all letters again.
            self._channel.close()
        close_connection(self._connection)

    def entries(self) -> Iterator[Entry]:
        """Return all that are there now, the oldest first."""
        with translated("reading the dead letters"):
            count = self._channel.queue_declare(DEAD_LETTER_QUEUE, passive=True).message_count
            for _ in range(count):
                message = self._channel.basic_get(DEAD_LETTER_QUEUE)
                if message is None:
                    return
                yield Entry.of(message)

    def remove(self, entry: Entry) -> None:
        """Remove one of them."""
        with translated("removing a dead letter"):
            self._channel.basic_ack(entry.message.delivery_tag)

    def put(self, dumped: dict[str, Any]) -> None:
        """Put one back, and return when RabbitMQ has confirmed it."""
        # A letter that was put back on purpose must not be taken for a copy that a crash has left.
        headers = {**dumped["headers"], _PUT_BACK: True}
        message = amqp.Message(base64.b64decode(dumped["body"]), application_headers=headers, **dumped["properties"])
        with translated("putting a dead letter back"):
            number = self._out.publish(message, DEAD_LETTER_EXCHANGE, dumped["routing_key"])
            if not self._out.wait(number, self._options.confirm_timeout):
                raise ResultStoreError(f"No queue is bound to the exchange {DEAD_LETTER_EXCHANGE}.")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _span(_: Any, __: Any, value: str | None) -> timedelta | None:
    if value is None:
        return None
    match = _SPAN.fullmatch(value)
    if match is None:
        raise click.BadParameter("write it as 30m, 12h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--reason", multiple=True, help=f"One of {', '.join(REASONS)}, or another; can be repeated."),
        click.option("--task", help="Name of the task; ends with * for a beginning."),
        click.option("--from-queue", help="The queue that the task came from."),
        click.option("--worker", help="Name of the worker."),
        click.option("--older", callback=_span, help="Dead-lettered longer ago than this: 30m, 12h or 7d."),
        click.option("--newer", callback=_span, help="Dead-lettered within this time: 30m, 12h or 7d."),
        click.option("--limit", type=click.IntRange(1), help="At most this many, oldest first."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def chosen(entries: Iterable[Entry], wanted: dict[str, Any]) -> Iterator[Entry]:
    """Return those of the entries that the options of a command mean."""
    now = datetime.now(UTC)
    left = wanted["limit"]
    for entry in entries:
        letter = entry.letter
        task, queue, worker = (letter.task, letter.queue, letter.worker) if letter else ("", "", "")
        name = wanted["task"]
        if (
            (wanted["ids"] and not {entry.id, letter.task_id if letter else ""}.intersection(wanted["ids"]))
            or (wanted["reason"] and entry.reason not in wanted["reason"])
            or (name and not (task.startswith(name[:-1]) if name.endswith("*") else task == name))
            or (wanted["from_queue"] and queue != wanted["from_queue"])
            or (wanted["worker"] and worker != wanted["worker"])
            or (wanted["older"] and entry.at > now - wanted["older"])
            or (wanted["newer"] and entry.at < now - wanted["newer"])
        ):
            continue
        yield entry
        if left is not None:
            left -= 1
            if not left:
                return


@contextlib.contextmanager
def _queue(context: click.Context) -> Iterator[DeadLetterQueue]:
    app = context.obj.app
    given, user = context.find_root().meta[__name__]
    url = given or app.conf.result_backend
    try:
        if not url:
            raise OptionError("There is no result_backend. Give --url, or set CELERY_DEAD_LETTERS_URL.")
        login = (user, _password(user)) if user else None
        with DeadLetterQueue(url, Options.from_mapping(app.conf.get(SETTING)), login) as letters:
            yield letters
    except HybridError as exc:
        raise click.ClickException(
            f"{exc}\nReading dead letters needs a user who may read {DEAD_LETTER_QUEUE} and write to "
            f"{DEAD_LETTER_EXCHANGE}: --user, --url or CELERY_DEAD_LETTERS_URL."
            if "ACCESS_REFUSED" in str(exc)
            else str(exc)
        ) from exc


def _password(user: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {user}: ")
    return sys.stdin.readline().rstrip("\n")


@click.group(name="dead-letters")
@click.option("--user", help="RabbitMQ user to log in as. The password is prompted for, or read from standard input.")
@click.option(
    "--url",
    envvar="CELERY_DEAD_LETTERS_URL",
    help="RabbitMQ as amqp://USER:PASSWORD@HOST/VHOST, better in CELERY_DEAD_LETTERS_URL. Default: result_backend.",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def dead_letters(context: click.Context, url: str | None, user: str | None) -> None:
    """List, show, replay and discard dead letters."""
    context.find_root().meta[__name__] = url, user


@dead_letters.command("list")
@_filtered
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON, one dead letter per line.")
@click.pass_context
def listed(context: click.Context, /, as_json: bool, **wanted: Any) -> None:
    """List dead letters, and count them by reason."""
    counts: Counter[str] = Counter()
    with _queue(context) as letters:
        for entry in chosen(letters.entries(), wanted):
            counts[entry.reason] += 1
            click.echo(json.dumps(_as_json(entry)) if as_json else entry.line())
    if not as_json:
        summary = ", ".join(f"{count} {printable(reason)}" for reason, count in counts.most_common())
        click.echo(summary or "No dead letters.")


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@click.pass_context
def show(context: click.Context, letter_id: str) -> None:
    """Show all of a letter, by its own or its task's id."""
    found = False
    with _queue(context) as letters:
        for entry in letters.entries():
            if letter_id not in (entry.id, entry.letter.task_id if entry.letter else None):
                continue
            found = True
            for name, value in _as_json(entry).items():
                if value not in ("", None):
                    click.echo(f"{name}: {_shown(value)}")
    if not found:
        raise click.ClickException(f"There is no dead letter {letter_id}.")


@dead_letters.command()
@_filtered
@click.option("--execute", is_flag=True, help="Do it. Without this option, only show what would be done.")
@click.option("--queue", help="Send to this queue, not the original one.")
@click.option("--new-id", is_flag=True, help="Give the tasks new ids. Otherwise their results replace the failures.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=10.0, help="Dead letters per second.")
@click.option("--again", is_flag=True, help="Also replay those that were replayed before.")
@click.pass_context
def replay(
    context: click.Context, /, execute: bool, queue: str | None, new_id: bool, rate: float, again: bool, **wanted: Any
) -> None:
    """Send tasks again, as they were; remove their dead letters when Redis has them."""
    counts: Counter[str] = Counter()
    with _queue(context) as letters, context.obj.app.connection_for_write() as connection:
        channel = connection.default_channel
        for entry in chosen(letters.entries(), wanted):
            letter = entry.letter
            if letter is None or not (letter.headers or letter.properties):
                counts["no task's"] += 1
                click.echo(f"{printable(entry.id)} is not a task message; it can only be discarded.")
                continue
            target = queue or (letter.routing_key if letter.reason == UNROUTABLE else letter.queue)
            if not execute:
                counts["would be replayed"] += 1
                click.echo(printable(f"would send {letter.task}[{letter.task_id}] to {target}: {entry.id}"))
                continue
            headers, properties = _anew(letter, new_id)
            try:
                send(channel, letter, target, headers, properties, _marker(letter), again)
            except ReplayedError as exc:
                if exc.copy and not entry.put_back:
                    # Left by a worker or a command that has died before it could remove its own.
                    letters.remove(entry)
                    counts["removed as copies"] += 1
                    click.echo(printable(f"removed {entry.id}: a copy of one that was replayed at {exc}"))
                    continue
                counts["refused"] += 1
                click.echo(
                    f"{printable(entry.id)} was already replayed at {exc}; left in the queue. Send it again with "
                    "--again, or discard it.",
                    err=True,
                )
                continue
            letters.remove(entry)
            counts["replayed"] += 1
            click.echo(printable(f"sent {letter.task}[{headers.get('id')}] to {target}: {entry.id}"))
            time.sleep(1 / rate)
    click.echo(", ".join(f"{count} {what}" for what, count in counts.items()) or "No dead letters.")
    if not execute and counts:
        click.echo("Nothing was sent. Repeat with --execute to send.")
    if counts["refused"]:
        raise click.exceptions.Exit(1)


@dead_letters.command("discard")
@_filtered
@click.option("--to", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file.")
@click.option("--execute", is_flag=True, help="Do it. Without this option, only show what would be done.")
@click.pass_context
def discarded(context: click.Context, /, path: Path, execute: bool, **wanted: Any) -> None:
    """Move dead letters to a file, one per line; put-back brings them back."""
    count = 0
    # An id can be used again, by another task.
    known = {_content(each) for each in _read(path)} if path.exists() else set()
    if execute and path.exists():
        _mend(path)
    with _queue(context) as letters, contextlib.ExitStack() as stack:
        file = None
        for entry in chosen(letters.entries(), wanted):
            count += 1
            if not execute:
                click.echo(f"would move {printable(entry.id)}")
                continue
            content = _content(entry.dump())
            if content not in known:
                if file is None:
                    file = stack.enter_context(
                        os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")
                    )
                    sync_folder_of(path)
                file.write(json.dumps(entry.dump()) + "\n")
                file.flush()
                os.fsync(file.fileno())
                known.add(content)
            letters.remove(entry)
    click.echo(f"{counted(count, 'dead letters')} {'moved' if execute else 'would be moved'} to {path}.")
    if not execute and count:
        click.echo("Nothing was moved. Repeat with --execute to move.")


@dead_letters.command("put-back")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--execute", is_flag=True, help="Do it. Without this option, only show what would be done.")
@click.pass_context
def put_back(context: click.Context, path: Path, execute: bool) -> None:
    """Put the dead letters of a file back, except those that are already there."""
    given = _read(path)
    with _queue(context) as letters:
        there = {_content(entry.dump()) for entry in letters.entries()}
        missing = [each for each in given if _content(each) not in there]
        words, rest = counted(len(missing), "dead letters"), len(given) - len(missing)
        if not execute:
            click.echo(f"would put {words} back; {rest} are already there.")
            click.echo("Nothing was put back. Repeat with --execute to put them back.")
            return
        for each in missing:
            letters.put(each)
    click.echo(f"{words} put back, {rest} were already there. {path} is unchanged.")


def _shown(value: Any) -> str:
    """Return a value as it is shown: each line of a text is indented, so that none looks like another field."""
    if not isinstance(value, str):
        return json.dumps(value)
    lines = [printable(line) for line in value.splitlines()]
    return lines[0] if len(lines) == 1 else "".join(f"\n    {line}" for line in lines)


def _as_json(entry: Entry) -> dict[str, Any]:
    if entry.letter is None:
        return {**entry.dump(), "at": entry.at.isoformat()}
    values: dict[str, Any] = json.loads(entry.letter.to_record().body)
    return values


def _anew(letter: DeadLetter, new_id: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return headers and properties of a letter's message, as of one that was never tried."""
    headers = {k: v for k, v in letter.headers.items() if k not in ("eta", "expires", "redelivered", LOST_HEADER)}
    properties = dict(letter.properties)
    if "retries" in headers:
        headers["retries"] = 0
    headers[REPLAYS_HEADER] = letter.replays + 1
    if new_id:
        name = str(uuid.uuid4())
        if headers.get("root_id") == headers.get("id"):
            headers["root_id"] = name
        headers["id"] = properties["correlation_id"] = name
    return headers, properties


def _marker(letter: DeadLetter) -> str:
    return f"celery.replayed.{letter.id.encode('utf-8', 'backslashreplace').decode()}"


def _content(dumped: dict[str, Any]) -> tuple[str, str]:
    return dumped["id"], hashlib.sha256(dumped["body"].encode()).hexdigest()


def _read(path: Path) -> list[dict[str, Any]]:
    found = []
    # Behind the last end of a line is what a command that was killed began to write. That letter is still in RabbitMQ.
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            each = json.loads(line)
            found.append({name: each[name] for name in ("id", "routing_key", "properties", "headers", "body")})
        except (ValueError, KeyError, TypeError) as exc:
            raise click.ClickException(f"{path}, line {number}, is not a dead letter.") from exc
    return found


def _mend(path: Path) -> None:
    """Cut off what a command that was killed began to write."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)

"""``celery tasks``: what waits in Redis and what is stuck; purge it into a file, put it back, recover it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import click
from celery.bin.base import handle_preload_options
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_hybrid.broker import transport
from celery_hybrid.delivery.delivery import Delivery
from celery_hybrid.delivery.outbox import Outbox, Refused
from celery_hybrid.errors import HybridError
from celery_hybrid.files import sync_folder_of
from celery_hybrid.recovery.tasks import InHand, TaskRecovery, held_by_workers, read
from celery_hybrid.terminal import counted, printable

_execute = click.option("--execute", is_flag=True, help="Do it. Without this option, only show what would be done.")
_timeout = click.option("-t", "--timeout", type=float, default=2.0, help="Seconds to wait for the workers.")
_file = click.Path(dir_okay=False, path_type=Path)


@contextlib.contextmanager
def _tasks(context: click.Context) -> Iterator[TaskRecovery]:
    # Whatever the workers use: its steps are atomic, and its keys are kombu's.
    transport.install()
    try:
        # A channel that waits for an answer also restores what is overdue; listing must not.
        with context.obj.app.connection_for_write(transport_options={"unacked_restore_limit": 0}) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2)
            yield TaskRecovery(connection)
    except (HybridError, RedisError, OperationalError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


@click.group(name="tasks")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def tasks(context: click.Context) -> None:
    """List, purge, put back and recover tasks in Redis; deliver results that wait on this host."""


@tasks.command("list")
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@_timeout
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def listed(context: click.Context, queues: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Show waiting tasks, unacknowledged ones and who has them, and the outbox of this host."""
    app = context.obj.app
    with _tasks(context) as found:
        names = sorted(queues or app.amqp.queues)
        waiting = {name: sum(found.waiting(name).values()) for name in names}
        begun = {name: known for name in names if (known := found.begun(name))}
        aside = {name: count for name, count in found.set_aside().items() if count}
        nodes, in_hand = _in_hand(app, found, timeout)
    outboxes = list(_outboxes(app))
    if as_json:
        told = {
            "waiting": waiting,
            "purges": {name: {**asdict(its), "left": left} for name, (its, left) in begun.items()},
            "set_aside": aside,
            "workers": nodes,
            "in_hand": [_as_json(each) for each in in_hand],
            "outboxes": [
                {"what": delivery.what, "path": str(outbox.path), **vars(depth)} for delivery, outbox, depth in outboxes
            ],
        }
        click.echo(json.dumps(told))
        return
    for name, count in waiting.items():
        click.echo(f"queue {name}: {count} waiting")
    for name, (its, left) in begun.items():
        click.echo(
            f"queue {name}: a purge into {its.path} on {its.host} was interrupted, {left} of its messages are in "
            "Redis. Repeat that command on that host."
        )
    for name, count in aside.items():
        click.echo(f"{name}: {counted(count, 'elements')} set aside")
    click.echo(f"unacknowledged: {len(in_hand)}; workers that answer: {', '.join(nodes) or 'none'}")
    for each in in_hand:
        click.echo(_line(each))
    for delivery, outbox, depth in outboxes:
        if depth.count or depth.refused:
            waiting_there = f"{counted(depth.count, delivery.what)} waiting{_since(depth.oldest)}"
            click.echo(f"{outbox.path}: {waiting_there}, {depth.refused} refused")


@tasks.command()
@click.argument("queue")
@click.option("--to", "path", type=_file, required=True, help="A new file, or the one of an interrupted purge.")
@_execute
@click.option("--take-over", is_flag=True, help="Continue an interrupted purge whose file is lost.")
@click.pass_context
def purge(context: click.Context, queue: str, path: Path, execute: bool, take_over: bool) -> None:
    """Move all that waits in a queue into a file, one a line; put-back brings it back."""
    with _tasks(context) as found:
        if not execute:
            for name, count in found.waiting(queue).items():
                if count:
                    click.echo(f"would move {counted(count, 'messages')} of {name!r}")
            begun = found.begun(queue)
            if begun:
                click.echo(f"would continue the purge into {begun[0].path} on {begun[0].host}: {begun[1]} messages")
            click.echo("Nothing was moved. Repeat with --execute to move.")
            return
        count = found.purge(queue, path, take_over)
    click.echo(f"{counted(count, 'messages')} of queue {queue} moved to {path}.")


@tasks.command("put-back")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_execute
@click.option("--again", is_flag=True, help="Also put back those that were put back before.")
@click.pass_context
def put_back(context: click.Context, path: Path, execute: bool, again: bool) -> None:
    """Put the messages of a file back where they were, each once."""
    with _tasks(context) as found:
        entries = read(path)
        if not execute:
            known = 0 if again else found.were_put_back(entries)
            click.echo(f"would put {counted(len(entries) - known, 'messages')} back; {known} were put back before.")
            click.echo("Nothing was put back. Repeat with --execute to put them back.")
            return
        count = found.put_back(entries, again)
    click.echo(
        f"{counted(count, 'messages')} put back, {len(entries) - count} were put back before. {path} is unchanged."
    )


@tasks.command()
@click.option("--gone", is_flag=True, help="Treat workers that do not answer as dead, and recover theirs too.")
@_execute
@_timeout
@click.pass_context
def recover(context: click.Context, gone: bool, execute: bool, timeout: float) -> None:
    """Put tasks back into their queues that were taken, are not acknowledged, and that no worker has.

    Without --gone only those that were taken longer ago than the visibility timeout. A worker that is only busy (a
    solo pool in a task) does not answer either, and its task would run twice.
    """
    app = context.obj.app
    count = 0
    with _tasks(context) as found:
        nodes, in_hand = _in_hand(app, found, timeout)
        click.echo(f"Workers that answer: {', '.join(nodes) or 'none'}")
        stuck = [each for each in in_hand if each.stuck(gone)]
        if not execute:
            for each in stuck:
                click.echo(f"would put back {_line(each)}")
            click.echo(f"{len(stuck)} of {len(in_hand)} unacknowledged are stuck.")
            if stuck:
                click.echo("Nothing was put back. Repeat with --execute to put them back.")
            return
        for each, moved in found.recover(stuck):
            count += moved
            click.echo(f"{'put back' if moved else 'no longer there, or set aside:'} {_line(each)}")
    click.echo(f"{count} of {len(in_hand)} unacknowledged are back in their queues.")


@tasks.command()
@_execute
@click.pass_context
def deliver(context: click.Context, execute: bool) -> None:
    """Bring results and dead letters of this host's outbox to RabbitMQ that no worker brings there any more."""
    nothing = True
    for delivery, outbox, depth in _outboxes(context.obj.app):
        what = delivery.what
        if depth.refused:
            click.echo(f"{outbox.path}: {counted(depth.refused, what)} set aside; 'celery tasks refused' shows why.")
        if not depth.count:
            continue
        nothing = False
        if not execute:
            click.echo(f"would deliver {counted(depth.count, what)} of {outbox.path}{_since(depth.oldest)}")
            continue
        assert delivery.relay is not None  # noqa: S101 - there is an outbox
        try:
            count = delivery.relay.empty()
        except HybridError as exc:
            raise click.ClickException(
                f"{exc}\nNot delivered, and still in {outbox.path}: {counted(outbox.depth().count, what)}."
            ) from exc
        done = "A worker of this host is delivering them." if count is None else f"{counted(count, what)} delivered."
        click.echo(done)
    if nothing:
        click.echo("Nothing waits in the outbox of this host.")
    elif not execute:
        click.echo("Nothing was delivered. Repeat with --execute to deliver.")


@tasks.command()
@click.option("--again", is_flag=True, help="Queue them for RabbitMQ again, because its limits or ours have changed.")
@click.option("--to", "path", type=_file, help="Move them to this new file.")
@_execute
@click.pass_context
def refused(context: click.Context, again: bool, path: Path | None, execute: bool) -> None:
    """Show what was set aside in the outboxes of this host because RabbitMQ can never take it; try or move it."""
    if again and path:
        raise click.UsageError("Give either --again or --to.")
    count = 0
    with _errors(), contextlib.ExitStack() as stack:
        file = None
        for _, outbox, _ in _outboxes(context.obj.app):
            for each in outbox.refused():
                count += 1
                click.echo(_aside(each))
                if execute and again:
                    outbox.take_back(each.seq)
                elif execute and path:
                    file = file or stack.enter_context(_new_file(path))
                    _append(file, each)
                    outbox.discard(each.seq)
    if not execute or not (again or path):
        click.echo(f"{counted(count, 'records')} set aside.")
    else:
        done = "queued for RabbitMQ again" if again else f"moved to {path}"
        click.echo(f"{counted(count, 'records')} {done}.")
    if (again or path) and not execute:
        click.echo("Nothing was changed. Repeat with --execute to change it.")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (HybridError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


def _new_file(path: Path) -> TextIO:
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    sync_folder_of(path)
    return file


def _append(file: TextIO, each: Refused) -> None:
    record = asdict(each.record) | {"body": base64.b64encode(each.record.body).decode()}
    file.write(json.dumps({"reason": each.reason, "reply_to": each.reply_to, **record}) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _aside(each: Refused) -> str:
    record = each.record
    return printable(f"{record.kind} {record.status} {record.id}  {len(record.body)} bytes  {each.reason}")


def _outboxes(app: Any) -> Iterator[tuple[Delivery, Outbox, Any]]:
    for delivery in getattr(getattr(app.backend, "store", None), "deliveries", ()):
        outbox = delivery.outbox
        # Looking must not make one.
        if outbox is not None and outbox.path.exists():
            try:
                depth = outbox.depth()
            except HybridError as exc:
                raise click.ClickException(str(exc)) from exc
            yield delivery, outbox, depth


def _in_hand(app: Any, found: TaskRecovery, timeout: float) -> tuple[list[str], list[InHand]]:
    # First what is unacknowledged: what is taken meanwhile is not in question.
    in_hand = found.in_hand()
    held = held_by_workers(app, found.connection, timeout)
    known = {task_id for ids in held.values() for task_id in ids}
    return sorted(held), [replace(each, held=each.task_id in known) for each in in_hand]


def _as_json(each: InHand) -> dict[str, Any]:
    return {**{name: value for name, value in vars(each).items() if name != "entry"}, "state": each.state}


def _line(each: InHand) -> str:
    task = f"{each.task or '(no name)'}[{each.task_id or each.tag}]"
    queue = printable(each.queue or "(no queue)")
    return f"{printable(task)}  {queue}  taken {timedelta(seconds=int(each.age))} ago, {each.state}"


def _since(oldest: int | None) -> str:
    return f", the oldest since {datetime.fromtimestamp(oldest, UTC):%Y-%m-%d %H:%M:%S} UTC" if oldest else ""

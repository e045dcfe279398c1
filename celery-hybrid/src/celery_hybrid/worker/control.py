"""``celery inspect result_store`` and ``celery result-store``: what the workers know of their result store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.worker.control import inspect_command
from kombu.exceptions import OperationalError

from celery_hybrid.results.chords import MainProcessChords
from celery_hybrid.results.store import stores_of
from celery_hybrid.terminal import counted

# At the terminal 'celery control' and 'celery inspect' know what is imported here.
from celery_hybrid.worker import log_level as _log_level  # noqa: F401
from celery_hybrid.worker import pools as _pools  # noqa: F401


@inspect_command(name="result_store")  # type: ignore[untyped-decorator]
def inspected(state: Any) -> dict[str, Any]:
    """Circuit to RabbitMQ, outboxes, refused results, dead letters, and the unfinished chords in Redis."""
    stores = stores_of(state.app)
    letters = getattr(state.consumer, "dead_letters", None)
    counts = {} if letters is None else {"put_away": dict(letters.counts)}
    return stores[0].state() | counts | _chords(state.app) if stores else {}


def _chords(app: Any) -> dict[str, Any]:
    chords = app.backend.chords
    if not isinstance(chords, MainProcessChords):
        return {}
    try:
        return {"chords": chords.counter.unfinished()}
    except (OperationalError, *app.connection_for_write().channel_errors) as exc:
        return {"chords": {"error": str(exc)}}


@click.command(cls=CeleryCommand)
@click.option("-t", "--timeout", type=float, default=1.0, help="Seconds to wait for the workers.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def result_store(context: click.Context, timeout: float, as_json: bool) -> None:
    """Show what the workers know of their result store."""
    app = context.obj.app
    replies = app.control.inspect(timeout=timeout)._request("result_store") or {}
    if as_json:
        click.echo(json.dumps(replies, sort_keys=True))
    for node, state in sorted(replies.items()) if not as_json else ():
        click.echo(f"{node}: {described(state)}")
    if not replies:
        raise click.ClickException("No worker has answered. Are they running, and is the broker's URL right?")


def described(state: dict[str, Any]) -> str:
    """Return the state of one worker in words."""
    if "servers" not in state:
        return "has no result store of celery-hybrid; check result_backend"
    outbox = state.get("outbox")
    words = [f"circuit to {', '.join(state['servers'])} {state['circuit'] or 'without outbox'}"]
    if outbox is not None and "error" in outbox:
        words.append(outbox["error"])
    elif outbox is not None:
        words.append(f"{counted(outbox['count'], 'results')} ({counted(outbox['size'], 'bytes')}) in the outbox")
        if outbox["oldest"]:
            words.append(f"the oldest of {datetime.fromtimestamp(outbox['oldest'], UTC):%Y-%m-%d %H:%M:%S} UTC")
        if outbox["refused"]:
            words.append(f"{outbox['refused']} refused for good (celery tasks refused)")
        if outbox["dropped"]:
            words.append(f"{outbox['dropped']} dropped")
    letters = state.get("dead_letters", {})
    if letters.get("count"):
        words.append(f"{counted(letters['count'], 'dead letters')} in their outbox")
    if letters.get("refused"):
        words.append(f"{counted(letters['refused'], 'dead letters')} refused for good (celery tasks refused)")
    if letters.get("error"):
        words.append(letters["error"])
    if letters.get("failure"):
        words.append(f"dead letters: {letters['failure']}")
    if state.get("put_away"):
        words.append(
            "dead-lettered: " + ", ".join(f"{count} {reason}" for reason, count in sorted(state["put_away"].items()))
        )
    chords = state.get("chords", {})
    if "error" in chords:
        words.append(f"chords: {chords['error']}")
    elif chords.get("open"):
        words.append(f"{counted(chords['open'], 'chords')} open in Redis, {chords['complete']} of them complete")
    if state["failure"]:
        words.append(state["failure"])
    return "; ".join(words)

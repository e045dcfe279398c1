"""``celery inspect pools``: how full the connection pools of a worker's main process are."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command


@inspect_command()  # type: ignore[untyped-decorator]
def pools(state: Any) -> dict[str, Any]:
    """Connections and producers in use, of how many."""
    app = state.app
    used = {"broker": _used(app.pool), "producers": _used(app.producer_pool)}
    return {name: {"used": number, "limit": limit} for name, (number, limit) in used.items()}


def _used(pool: Any) -> tuple[int, int | None]:
    return len(pool._dirty), pool.limit

"""The queue of dead letters, over a plain AMQP connection of a user who may read it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from .results import DEAD_LETTERS, ResultChecks

#: Letters that may be searched; no other client sees them meanwhile.
MOST = 3000
# Seconds for which a look keeps them, and longest pause before the next one.
_LOOK, _PAUSE = 2.0, 0.5


class DeadLetterFinder:
    """Looks for a dead letter.

    Args:
        results: where RabbitMQ is.
        login: ``user`` and ``password``; or ``reason``, why letters are not searched.
    """

    def __init__(self, results: ResultChecks, login: Mapping[str, Any]) -> None:
        self._results = results
        self._reason = str(login.get("reason") or "")
        self._login = (str(login.get("user") or "letters"), str(login.get("password") or ""))

    def unreadable(self) -> str:
        """Return why no letter can be looked for, and what would let it; nothing when one can."""
        if self._reason:
            return self._reason
        if not self._login[1]:
            return (
                "not tried, because no user may read dead letters: set rabbitmq_letters_password "
                "(RABBITMQ_LETTERS_PASSWORD), run the site playbook, and verify again"
            )
        with self._results.connect(self._login) as connection:
            count = connection.channel().queue_declare(DEAD_LETTERS, passive=True).message_count
        if count > MOST:
            return (
                f"not tried, because {count} dead letters wait, more than the {MOST} that are searched: replay "
                "or discard them (playbook dead_letters), and verify again"
            )
        return ""

    def take(self, task_id: str, seconds: float) -> str | None:
        """Wait for the dead letter of a task, and remove it.

        Returns:
            Its routing key, which says why it is there; None when it does not come in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._results.connect(self._login) as connection:
                channel = connection.channel()
                until = min(deadline, time.monotonic() + _LOOK)
                while time.monotonic() < until:
                    message = channel.basic_get(DEAD_LETTERS)
                    if message is None:
                        time.sleep(0.05)
                    elif task_id.encode() in _bytes(message.body):
                        channel.basic_ack(message.delivery_tag)
                        return str(message.delivery_info["routing_key"])
            # The others are in their places again; another client may have had it.
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311
        return None


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)

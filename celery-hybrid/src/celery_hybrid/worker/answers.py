"""Answers of other workers, as a worker reads them: those that it must not decode are left out.

A worker that starts asks its neighbours what they know (Celery's mingle). With Celery's own mailbox one neighbour that
answers with pickle ends every worker that accepts JSON only, with ContentDisallowed, as often as it is started.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from typing import Any

from kombu import pidbox
from kombu.exceptions import ContentDisallowed

logger = logging.getLogger(__name__)


class ForgivingMailbox(pidbox.Mailbox):  # type: ignore[misc]
    """kombu's, which goes on where an answer is refused."""

    @classmethod
    def of(cls, mailbox: Any) -> Any:
        """Return a mailbox that is like another one; that one itself, where it is no longer kombu's own."""
        if type(mailbox) is not pidbox.Mailbox:
            return mailbox
        own = copy(mailbox)
        own.__class__ = cls
        return own

    def _collect(
        self,
        ticket: str,
        limit: int | None = None,
        timeout: float = 1,
        callback: Callable[[Any], Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> list[Any]:
        heard: list[Any] = []

        def hear(body: Any) -> None:
            heard.append(body)
            if callback:
                callback(body)

        refused = 0
        while limit is None or len(heard) + refused < limit:
            left = None if limit is None else limit - len(heard) - refused
            try:
                found: list[Any] = super()._collect(ticket, left, timeout, hear, *args, **kwargs)
            except ContentDisallowed as exc:
                # Taken from the queue of answers with that; the next ones are still in it.
                refused += 1
                logger.warning("Ignoring the answer of another worker, whose task_serializer is wrong: %s", exc)
                continue
            # Without a call for each when another question has brought them.
            return heard or found
        return heard

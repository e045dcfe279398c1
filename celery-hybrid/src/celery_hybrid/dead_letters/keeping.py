"""Keeping dead letters in RabbitMQ, or in their outbox, before a task leaves Redis."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from celery_hybrid.dead_letters.letter import FAILED, LOST, REASONS, TIME_LIMIT, DeadLetter
from celery_hybrid.dead_letters.policy import SETTING, Policy
from celery_hybrid.errors import OptionError
from celery_hybrid.terminal import printable

logger = logging.getLogger(__name__)

# Celery has logged these as errors. One more would be a second event of one failure for programs such as Sentry.
_LOGGED = (FAILED, LOST, TIME_LIMIT)


class DeadLetters:
    """Puts tasks away, for one worker.

    Args:
        app: whose result store takes the letters.
        worker: its name.

    Raises:
        OptionError: ``worker_dead_letters`` is wrong, or results are not in RabbitMQ.
    """

    def __init__(self, app: Any, worker: str) -> None:
        self.policy = Policy.from_mapping(app.conf.get(SETTING))
        self.worker = worker
        store = getattr(app.backend, "store", None)
        if not hasattr(store, "keep"):
            raise OptionError(
                "worker_consumer: celery_hybrid.worker.consumer brings dead letters to RabbitMQ, so it needs "
                "result_backend = 'amqp://…' of celery-hybrid. Set it, or leave worker_consumer alone."
            )
        self._app = app
        #: Letters by their reason, since the worker has started.
        self.counts: Counter[str] = Counter()

    def keep(self, letter: DeadLetter) -> bool:
        """Keep a letter durably; this never raises.

        Returns:
            False when neither RabbitMQ nor the outbox took it: then the task has to stay in Redis.
        """
        try:
            self._app.backend.store.keep(letter.to_record())
        except Exception as exc:
            logger.critical("Could not dead-letter the %s; it stays in Redis (%s): %s", *_of(letter), exc)
            return False
        self.counts[letter.reason] += 1
        logger.log(
            logging.WARNING if letter.reason in _LOGGED else logging.ERROR,
            "Dead-lettered the %s: %s. %s",
            *(_of(letter)[0], REASONS[letter.reason], printable(letter.exception)),
        )
        return True


def _of(letter: DeadLetter) -> tuple[str, str]:
    name, task_id, queue = (printable(text) for text in (letter.task, letter.task_id, letter.queue))
    return f"task {name or '(no name)'}[{task_id or 'no id'}] of queue {queue}", REASONS[letter.reason]

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The Celery application of a Flask application, and its tasks."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task, shared_task
from flask import Flask


def make_celery(app: Flask) -> Celery:
    """Return a Celery application whose tasks run in the context of a Flask application."""

    class ContextTask(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=ContextTask)
    celery.config_from_object(app.config["CELERY"])
    # In all threads: shared tasks and AsyncResult find it.
    celery.set_default()
    return celery


@shared_task(name="flask_app.total")
def total(numbers: list[float]) -> float:
    """Return the sum of some numbers.

    Raises:
        ValueError: there are none.
    """
    if not numbers:
        raise ValueError("there is nothing to add up")
    return sum(numbers)

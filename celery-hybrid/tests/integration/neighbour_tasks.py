"""The application of a worker that nobody has told of JSON yet."""

from __future__ import annotations

from dead_letter_tasks import app

app.conf.update(task_serializer="pickle", accept_content=["json", "pickle"])

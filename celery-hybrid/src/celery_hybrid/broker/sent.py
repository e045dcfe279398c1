"""When a task was sent: a header of its message, so that workers know how long it waited."""

from __future__ import annotations

import time
from typing import Any

#: Seconds since the epoch, by the sender's clock.
SENT_HEADER = "x-sent"


def stamp(headers: Any = None, **_: Any) -> None:
    """Write the time into the headers of a task that is being sent; a receiver of ``before_task_publish``."""
    # A task of message protocol 1 has none.
    if headers:
        headers[SENT_HEADER] = time.time()

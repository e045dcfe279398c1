"""Wait for the statistics of RabbitMQ's management API, which are not of the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T]) -> T:
    """Return the first true value of a condition, at most a minute from now."""
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return value

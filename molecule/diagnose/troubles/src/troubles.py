# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""An application that makes trouble when it is asked to."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from celery import Celery
from celery.utils.log import get_task_logger

app = Celery("troubles")
logger = get_task_logger(__name__)


@app.task(name="troubles.sleep")
def sleep(seconds: float) -> None:
    """Take some time."""
    time.sleep(seconds)


@app.task(name="troubles.hold")
def hold(seconds: float) -> None:
    """Take every connection of the pool, and keep them for a while, or until told to let go."""
    held = [app.pool.acquire() for _ in range(app.pool.limit)]
    for connection in held:
        connection.default_channel.client.ping()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not Path("/var/lib/celery/let-go").exists():
        time.sleep(0.1)
    for connection in held:
        connection.close()
        connection.release()


@app.task(name="troubles.whisper")
def whisper(word: str, times: int = 1, pause: float = 0.5) -> list[int]:
    """Say a word at DEBUG, some times, and connect once; return the process, and how often it was to be heard."""
    with app.connection_for_write() as connection:
        connection.connect()
    heard = 0
    for _ in range(times):
        logger.debug("whispered %s", word)
        heard += logger.isEnabledFor(logging.DEBUG)
        time.sleep(pause if times > 1 else 0)
    return [os.getpid(), heard]

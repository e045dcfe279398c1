# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that both suites make; each lasts as long as its block, and leaves everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.lab import Servers


@contextlib.contextmanager
def standing_still(servers: Servers, process: str) -> Iterator[None]:
    """Stop a process without ending it; the kernel goes on taking bytes for it."""
    try:
        servers.shell(f"kill -STOP $(pidof {process})")
        yield
    finally:
        servers.shell(f"kill -CONT $(pidof {process})")


@contextlib.contextmanager
def memory_alarm(servers: Servers) -> Iterator[None]:
    """Set off RabbitMQ's memory alarm."""
    limit = servers.shell("rabbitmqctl eval 'vm_memory_monitor:get_vm_memory_high_watermark().'")
    try:
        servers.shell("rabbitmqctl -q set_vm_memory_high_watermark 0.00001")
        yield
    finally:
        servers.shell(f"rabbitmqctl eval 'vm_memory_monitor:set_vm_memory_high_watermark({limit}).'")


def fill(path: Path) -> None:
    """Fill a file system to the last byte, with a file in it."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

"""Where things are, and how long they may take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
STATE = ROOT / ".cache" / "hosts"
INVENTORY = ROOT / "molecule" / "inventory" / f"{os.environ.get('MOLECULE_SCENARIO_NAME', 'stack_on_debian12')}.yml"
#: Of the hosts; also the folder of their certificates in STATE / "tls".
PROJECT = yaml.safe_load(INVENTORY.read_text())["all"]["vars"]["test_host_project"]


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return the first true value of the condition; after a boot, services need a moment."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return value

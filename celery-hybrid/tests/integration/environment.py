"""What the tests are told about the servers, by environment variables; conftest.py lists them."""

from __future__ import annotations

import os

import pytest


def needed(name):
    """Return a setting of the environment, or end the test."""
    value = os.environ.get(name)
    if not value:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not set, and CI=true")
        pytest.skip(f"{name} is not set")
    return value

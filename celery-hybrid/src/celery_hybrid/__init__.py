"""Celery's results in RabbitMQ, durably, while the broker is Redis.

Installed, it registers the result backends ``amqp://`` and ``amqps://``; nothing needs to be imported.
"""

from __future__ import annotations

from celery_hybrid.errors import (
    HybridError,
    OptionError,
    RecordRefusedError,
    ResultStoreError,
    ResultStoreUnreachableError,
    TopologyError,
)

__version__ = "0.1.0"

__all__ = [
    "HybridError",
    "OptionError",
    "RecordRefusedError",
    "ResultStoreError",
    "ResultStoreUnreachableError",
    "TopologyError",
]

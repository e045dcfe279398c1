"""Proof, check by check, that a Celery deployment does what it says: tasks over Redis, results in RabbitMQ.

``python -m celery_hybrid.verify --app payments`` prints a table for people, ``--json`` data for programs.
It changes nothing that lasts: see :mod:`celery_hybrid.verify.canary` for what a canary leaves until it expires.
"""

from __future__ import annotations

from .report import Check, CheckReport
from .request import VerifyRequest, VerifyRequestError
from .runner import run

__all__ = ["Check", "CheckReport", "VerifyRequest", "VerifyRequestError", "run"]

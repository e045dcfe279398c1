# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""An example application: a shop whose orders are priced by a worker."""

from __future__ import annotations

# Django imports this first, so that shared tasks find the application in every process.
from django_shop.celery import app

__all__ = ["app"]

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""An example application: what a task looks like that may run twice without harm."""

from __future__ import annotations

from payments.app import app

__all__ = ["app"]

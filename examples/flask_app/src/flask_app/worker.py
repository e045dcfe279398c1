# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""For the worker: ``celery --app flask_app.worker worker``."""

from __future__ import annotations

from flask_app import create_app

app = create_app().extensions["celery"]

# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The application object.

It holds no setting: the deployment owns them. Celery reads the module that ``CELERY_CONFIG_MODULE``
names, and both addresses from ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``. So the same code
runs in a worker, in a web server and in a shell.
"""

from __future__ import annotations

from celery import Celery

app = Celery("payments", include=["payments.tasks"])

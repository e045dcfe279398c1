# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The Celery application: ``celery --app django_shop worker``."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_shop.settings")

app = Celery("django_shop")
# Every setting that begins with CELERY_, without that prefix.
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

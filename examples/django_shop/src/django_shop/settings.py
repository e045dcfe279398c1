# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Settings, all of them from the environment.

Raises:
    KeyError: ``DJANGO_SECRET_KEY``, ``CELERY_BROKER_URL`` or ``CELERY_RESULT_BACKEND`` is not set.
"""

from __future__ import annotations

import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")
DEBUG = False
ROOT_URLCONF = "django_shop.urls"
WSGI_APPLICATION = "django_shop.wsgi.application"
INSTALLED_APPS = ["django_shop.orders"]
# No sessions and no cookies, so nothing that another site could forge.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DJANGO_DATABASE", "shop.sqlite3")}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_RESULT_BACKEND = os.environ["CELERY_RESULT_BACKEND"]
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {
    # As many as RabbitMQ has; it says so if they differ.
    "partitions": int(os.environ.get("CELERY_RESULT_PARTITIONS", "16")),
}
CELERY_TASK_DEFAULT_QUEUE = "django-shop"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_ENABLE_UTC = True
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True

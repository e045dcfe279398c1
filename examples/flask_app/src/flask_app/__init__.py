# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""An example application: a request sends a task, any process of the web server shows what became of it."""

from __future__ import annotations

import os

from flask import Flask

from flask_app.tasks import make_celery
from flask_app.views import views


def create_app() -> Flask:
    """Make the application, from the settings in the environment.

    Raises:
        KeyError: ``CELERY_BROKER_URL`` or ``CELERY_RESULT_BACKEND`` is not set.
    """
    app = Flask(__name__)
    app.config["CELERY"] = {
        "broker_url": os.environ["CELERY_BROKER_URL"],
        "result_backend": os.environ["CELERY_RESULT_BACKEND"],
        # As many as RabbitMQ has; it says so if they differ.
        "result_backend_transport_options": {"partitions": int(os.environ.get("CELERY_RESULT_PARTITIONS", "16"))},
        "task_default_queue": "flask-app",
        "accept_content": ["json"],
        "enable_utc": True,
        "timezone": "UTC",
        "broker_connection_retry_on_startup": True,
    }
    app.extensions["celery"] = make_celery(app)
    app.register_blueprint(views)
    return app

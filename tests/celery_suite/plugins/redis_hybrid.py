# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A name for the backend ``amqp://`` that begins with "redis".

Most of Celery's integration tests skip themselves unless ``result_backend`` begins with it. Celery takes
``redis_hybrid:AMQPBackend+amqp://…`` for the class before the plus with the URL after it.
"""

from celery_hybrid.backend import AMQPBackend

__all__ = ["AMQPBackend"]

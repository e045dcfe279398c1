# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Without any server: broker, results, database and worker are in the process of the tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker

from celery_hybrid import testing


@pytest.fixture(scope="module")
def celery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The Celery application of Django, which is set up once in a process, with a worker."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CELERY_BROKER_URL", "memory://")
        environment.setenv("CELERY_RESULT_BACKEND", "amqp-memory://")
        environment.setenv("CELERY_RESULT_PARTITIONS", "12")
        environment.setenv("DJANGO_SECRET_KEY", "for these tests")
        environment.setenv("DJANGO_ALLOWED_HOSTS", "testserver")
        environment.setenv("DJANGO_DATABASE", str(tmp_path_factory.mktemp("database") / "shop.sqlite3"))
        import django

        from django_shop import app

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        # Kombu looks for messages in memory once a second otherwise.
        app.conf.broker_transport_options = {"polling_interval": 0.01}
        with start_worker(app, perform_ping_check=False):
            yield app


@pytest.fixture
def client(celery: Any) -> Iterator[Any]:
    from django.test import Client

    yield Client()
    testing.clear()


def order(client: Any, item: str, quantity: int) -> Any:
    sent = client.post("/orders", {"item": item, "quantity": quantity}, content_type="application/json")
    assert sent.status_code == 202
    return client.get(sent.headers["Location"], {"wait": 10}).json()


def test_an_order_is_priced(client: Any) -> None:
    from django_shop.orders.models import Order

    answer = order(client, "book", 2)
    assert (answer["state"], answer["result"]["total"]) == ("SUCCESS", 3998)
    assert Order.objects.get(pk=answer["result"]["order"]).total == 3998
    # Again, without waiting, as often as one likes.
    assert client.get(f"/results/{answer['id']}").json() == answer


def test_an_order_that_cannot_be_priced(client: Any) -> None:
    answer = order(client, "moon", 1)
    assert (answer["state"], answer["error"]) == ("FAILURE", "UnknownItemError: the shop sells no moon")


def test_an_unknown_id_is_pending(client: Any) -> None:
    answer = client.get(f"/results/{uuid.uuid4()}", {"wait": 0.1}).json()
    assert (answer["state"], answer["result"]) == ("PENDING", None)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"item": "book"}', '{"item": "book", "quantity": 0}'])
def test_invalid_order_is_refused(client: Any, body: str) -> None:
    assert client.post("/orders", body, content_type="application/json").status_code == 400


def test_nothing_is_sent_before_the_commit(client: Any) -> None:
    from celery.signals import before_task_publish
    from django.db import transaction

    sent: list[Any] = []

    @before_task_publish.connect
    def published(sender: str, **_: Any) -> None:
        sent.append(sender)

    with transaction.atomic():
        client.post("/orders", {"item": "book", "quantity": 1}, content_type="application/json")
        assert sent == []
        transaction.set_rollback(True)
    assert sent == []
    order(client, "book", 1)
    assert sent == ["django_shop.price_order"]


def test_django_settings_reach_the_backend(celery: Any) -> None:
    """With the prefix CELERY_, in a namespace of Django's settings."""
    assert (celery.conf.broker_url, celery.conf.result_backend) == ("memory://", "amqp-memory://")
    assert (celery.conf.accept_content, celery.conf.timezone) == (["json"], "UTC")
    assert celery.backend.options.partitions == 12


def test_a_thread_of_the_web_server_has_the_same_application(celery: Any) -> None:
    """As with runserver, or gunicorn --threads: they would get an application without settings otherwise."""
    import threading

    from celery.result import AsyncResult

    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(AsyncResult("id").backend.url))
    thread.start()
    thread.join()
    assert seen == ["amqp-memory://"]


def test_the_migrations_fit_the_models(celery: Any) -> None:
    from django.core.management import call_command

    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_a_setting_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    for name in ("DJANGO_SECRET_KEY", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)
    with pytest.raises(KeyError, match="CELERY_RESULT_BACKEND"):
        runpy.run_path(str(Path(__file__).parents[1] / "src/django_shop/settings.py"))

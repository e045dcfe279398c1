# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Without any server: broker, results and worker are in the process of the tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from flask import Flask
from flask.testing import FlaskClient

from celery_hybrid import testing
from flask_app import create_app


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CELERY_BROKER_URL", "memory://")
        environment.setenv("CELERY_RESULT_BACKEND", "amqp-memory://")
        app = create_app()
        # Kombu looks for messages in memory once a second otherwise.
        app.extensions["celery"].conf.broker_transport_options = {"polling_interval": 0.01}
        with start_worker(app.extensions["celery"], perform_ping_check=False):
            yield app


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    yield app.test_client()
    testing.clear()


def total(client: FlaskClient, *numbers: float) -> Any:
    sent = client.post("/totals", json={"numbers": numbers})
    assert sent.status_code == 202
    return client.get(sent.headers["Location"], query_string={"wait": 10}).json


def test_a_total(client: FlaskClient) -> None:
    answer = total(client, 1, 2, 3.5)
    assert (answer["state"], answer["result"]) == ("SUCCESS", 6.5)
    # Again, without waiting, as often as one likes.
    assert client.get(f"/results/{answer['id']}").json == answer


def test_a_task_that_fails(client: FlaskClient) -> None:
    answer = total(client)
    assert (answer["state"], answer["error"]) == ("FAILURE", "ValueError: there is nothing to add up")


def test_an_unknown_id_is_pending(client: FlaskClient) -> None:
    answer = client.get(f"/results/{uuid.uuid4()}", query_string={"wait": 0.1}).json
    assert answer is not None
    assert (answer["state"], answer["result"]) == ("PENDING", None)


@pytest.mark.parametrize("body", [{}, [], {"numbers": 1}, {"numbers": ["1"]}, {"numbers": [True]}])
def test_values_that_are_not_numbers_are_refused(client: FlaskClient, body: Any) -> None:
    assert client.post("/totals", json=body).status_code == 400


def test_settings_come_from_the_environment(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    celery = app.extensions["celery"]
    assert (celery.conf.broker_url, celery.conf.result_backend) == ("memory://", "amqp-memory://")
    assert (celery.conf.accept_content, celery.conf.timezone) == (["json"], "UTC")
    assert celery.backend.options.partitions == 16
    monkeypatch.delenv("CELERY_RESULT_BACKEND")
    with pytest.raises(KeyError, match="CELERY_RESULT_BACKEND"):
        create_app()

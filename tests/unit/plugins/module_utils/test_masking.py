"""The cases of masking.json hold for the package as well, whose own test reads the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _masking as subject

CASES: dict[str, Any] = json.loads((Path(__file__).parents[2] / "masking.json").read_text())
URLS = {**CASES["urls"], **CASES["raw_urls"]}


@pytest.mark.parametrize(("text", "shown"), URLS.values(), ids=URLS)
def test_passwords_of_urls_are_masked(text: str, shown: str) -> None:
    assert subject.masked(text) == shown
    assert subject.masked(shown) == shown


@pytest.mark.parametrize(("environment", "text", "shown"), CASES["known"].values(), ids=CASES["known"])
def test_known_secrets_are_masked_wherever_they_occur(environment: dict[str, str], text: str, shown: str) -> None:
    assert subject.masked(text, subject.secrets_of(environment)) == shown


def test_passwords_are_masked_in_values_and_keys() -> None:
    value = {"a": ["known-secret here", "redis://u:p%40ss/w@h:1/0"], "b": 3, "known-secret": None}
    assert subject.masked(value, ["known-secret"]) == {
        "a": ["******** here", "redis://u:********@h:1/0"],
        "b": 3,
        "********": None,
    }


def test_fields_that_are_named_as_secrets_are_masked_on_request() -> None:
    value = {"src-uri": ["amqp://user:pass@host/x"], "api-token": "t0ken", "routing_key": "k", "count": 3, "secret": ""}
    assert subject.masked(value, fields=True) == {
        "src-uri": ["amqp://user:********@host/x"],
        "api-token": "********",
        "routing_key": "k",
        "count": 3,
        "secret": "",
    }
    assert subject.masked(value)["api-token"] == "t0ken"
    assert list(filter(None, subject.secrets_in(value))) == ["pass", "t0ken"]


def test_secrets_are_url_passwords_in_each_form_and_values_of_telling_names() -> None:
    found = subject.secrets_of(
        {
            "CELERY_BROKER_URL": "redis://u:p%40ss%2Fword@h/0",
            "CELERY_RESULT_BACKEND": "amqp://w:first-secret@h1/celery;amqps://w:second-secret@h2/celery",
            "DJANGO_SECRET_KEY": "django-secret",
            "LANG": "C.UTF-8",
            "RAW": "redis://:pass@:/%#?&+=w0rd@h/0",
            "API_TOKEN": "short",
        }
    )
    wanted = {"p%40ss%2Fword", "p@ss/word", "first-secret", "second-secret", "django-secret", "pass@:/%#?&+=w0rd"}
    assert wanted <= set(found)
    assert not {"C.UTF-8", "short"} & set(found)
    assert found == sorted(found, key=len, reverse=True)


def test_password_with_a_raw_at_sign_is_secret_in_both_readings() -> None:
    assert set(subject.url_passwords("amqp://w:first@half@h1/celery")) == {"first@half", "first"}

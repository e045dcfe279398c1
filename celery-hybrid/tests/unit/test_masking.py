"""The cases of masking.json hold for the package; the collection's own test reads the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celery_hybrid.masking import Mask, masked

CASES: dict[str, Any] = json.loads((Path(__file__).parents[3] / "tests" / "unit" / "masking.json").read_text())
URLS = {**CASES["urls"], **CASES["raw_urls"]}


@pytest.mark.parametrize(("text", "shown"), URLS.values(), ids=URLS)
def test_passwords_of_urls_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert Mask()(text) == shown


@pytest.mark.parametrize(("environment", "text", "shown"), CASES["known"].values(), ids=CASES["known"])
def test_known_secrets_are_masked_wherever_they_occur(environment: dict[str, str], text: str, shown: str) -> None:
    assert Mask(environment.values())(text) == shown

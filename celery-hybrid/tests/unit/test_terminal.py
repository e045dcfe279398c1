"""Nothing that others have written acts on the terminal of a person."""

from __future__ import annotations

import pytest

from celery_hybrid.terminal import counted, printable


@pytest.mark.parametrize(
    "evil",
    [
        "\x1b[31m",
        "\x1b]0;title\x07",
        "a\nb",
        "a\rb",
        "\x9b31m",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u200b",
        "\u2028",
        "\ud800",
        "\0",
    ],
)
def test_control_characters_become_escapes(evil: str) -> None:
    shown = printable(evil)
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == evil


def test_other_text_stays_as_it_is() -> None:
    assert printable("shop.charge[ü 日本 …] 100 %") == "shop.charge[ü 日本 …] 100 %"


@pytest.mark.parametrize(("count", "shown"), [(0, "0 dead letters"), (1, "1 dead letter"), (2, "2 dead letters")])
def test_number_of_things_agrees_with_their_name(count: int, shown: str) -> None:
    assert counted(count, "dead letters") == shown

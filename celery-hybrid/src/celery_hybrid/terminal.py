"""Text for people: what others have written, made harmless, and numbers of things."""

from __future__ import annotations

import unicodedata

#: Control characters, formatting ones (they turn the direction of text), lone surrogates, ends of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: object) -> str:
    """Return a text in one line, with an escape for every character that would act on a terminal.

    Names of tasks, ids and exceptions come from anyone who may send a message; a terminal takes commands from text.
    """
    return "".join(_escaped(each) if unicodedata.category(each) in _UNSEEN else each for each in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def counted(count: int, things: str) -> str:
    """Return a number of things in words: ``1 result``, ``2 results``.

    Args:
        count: how many.
        things: their name in the plural, which ends with s.
    """
    return f"{count} {things.removesuffix('s') if count == 1 else things}"

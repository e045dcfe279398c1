"""Keep passwords out of everything that is printed. The collection's modules have the same rules and cases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

MASK = "********"
# A password that was not percent-encoded may contain "/", "?", "#", "@": it ends at the last "@" before the next URL.
_URL_PASSWORD = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/?#;@]*:)(?P<password>(?:(?![,'\"|][a-z][a-z0-9+.-]*://)[^\s;])*)@",
    re.IGNORECASE,
)
# A shorter one would blot out ordinary words; the roles refuse passwords this short.
_SHORTEST = 6


def masked(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    return _URL_PASSWORD.sub(rf"\g<before>{MASK}@", text)


class Mask:
    """Replaces passwords of URLs, and given secrets wherever they stand.

    Args:
        sources: texts, such as the values of environment variables, whose URL passwords are secret.
    """

    def __init__(self, sources: Iterable[str | None] = ()) -> None:
        self._secrets: list[str] = []
        self.learn(*sources)

    def learn(self, *sources: str | None) -> None:
        """Take the URL passwords of more texts for secrets."""
        secrets = set(self._secrets)
        for source in sources:
            for match in _URL_PASSWORD.finditer(str(source or "")):
                # What follows the first "@" may belong to the password or to the rest of the text.
                for password in (match["password"], match["password"].split("@")[0]):
                    secrets.update((password, unquote(password), quote(unquote(password), safe="")))
        self._secrets = sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return masked(text)

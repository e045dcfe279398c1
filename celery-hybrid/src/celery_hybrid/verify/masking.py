"""Keep secrets out of everything that is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

# The password of a URL ends at the last "@" before the path, query, or next URL of a ";" list.
_URL_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/?#;@]*:)(?P<password>[^\s;/?#]*)@", re.IGNORECASE)
# A password that nobody percent-encoded may hold "/", "?" or "#": take everything up to the last "@".
_RAW_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/?#;@]*:)(?P<password>[^\s;]*)@", re.IGNORECASE)
_HIDDEN = "********"
# A shorter one would blot out ordinary words; the roles refuse passwords this short.
_SHORTEST = 6


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
            for pattern in (_URL_PASSWORD, _RAW_PASSWORD):
                for match in pattern.finditer(str(source or "")):
                    password = match["password"]
                    secrets.update((password, unquote(password), quote(unquote(password), safe="")))
        self._secrets = sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return _URL_PASSWORD.sub(rf"\g<before>{_HIDDEN}@", text)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep secrets out of what people read. The package has the same rules; one table of cases tests both."""

from __future__ import annotations

import re
import typing as t
from urllib.parse import quote, unquote

MASK = "********"
# A password that was not percent-encoded may contain "/", "?", "#", "@": it ends at the last "@" before the next URL.
_URL_PASSWORD = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/?#;@]*:)(?P<password>(?:(?![,'\"|][a-z][a-z0-9+.-]*://)[^\s;])*)@",
    re.IGNORECASE,
)
# Fields of RabbitMQ's objects. Not "key", which names routing keys.
_SECRET_FIELD = re.compile(r"password|passwd|secret|token|hash$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"PASS|SECRET|TOKEN|KEY", re.IGNORECASE)
# A shorter one would blot out ordinary words; the roles refuse passwords this short.
_SHORTEST_SECRET = 6


def masked(value: t.Any, secrets: t.Sequence[str] = (), *, fields: bool = False) -> t.Any:
    """Return a copy of a value in which no secret is readable.

    Args:
        value: a text, or dictionaries and lists of them; keys are masked as well.
        secrets: known secrets, the longest first, which are masked wherever they occur. Passwords in URLs always are.
        fields: whether to mask the values of fields that are named as secrets, such as ``password_hash``.
    """
    return _masked(value, secrets, fields, "")


def _masked(value: t.Any, secrets: t.Sequence[str], fields: bool, field: str) -> t.Any:
    if isinstance(value, t.Mapping):
        return {
            _masked(key, secrets, False, ""): _masked(item, secrets, fields, str(key)) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked(item, secrets, fields, field) for item in value]
    if not isinstance(value, str):
        return value
    if fields and value and _SECRET_FIELD.search(field):
        return MASK
    for secret in secrets:
        value = value.replace(secret, MASK)
    return _URL_PASSWORD.sub(rf"\g<before>{MASK}@", value)


def secrets_in(value: t.Any, field: str = "") -> t.Iterator[str]:
    """Yield the texts that :func:`masked` hides in a value with ``fields=True``."""
    if isinstance(value, t.Mapping):
        for key, item in value.items():
            yield from secrets_in(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secrets_in(item, field)
    elif isinstance(value, str):
        yield from [value] if _SECRET_FIELD.search(field) else url_passwords(value)


def secrets_of(environment: t.Mapping[str, str]) -> list[str]:
    """Return every secret of an environment in each form in which it may be printed, the longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        for password in url_passwords(value):
            found.update((password, unquote(password), quote(unquote(password), safe="")))
        if _SECRET_VARIABLE.search(name):
            found.add(value)
    return sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)


def url_passwords(text: str) -> list[str]:
    """Return the passwords of the URLs in a text, as they are written there.

    What follows the first "@" may belong to the password or to the rest of the text, so both forms are returned.
    """
    found = [match["password"] for match in _URL_PASSWORD.finditer(text)]
    return list(dict.fromkeys(form for password in found for form in (password, password.split("@")[0])))

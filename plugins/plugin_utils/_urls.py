# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""URLs of servers: made from their parts, and judged without ever repeating a password."""

from __future__ import annotations

import re
import typing as t
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "amqp": 5672, "amqps": 5671}
SCHEMES = {
    "broker": ("redis", "rediss", "redis+socket", "sentinel"),
    "results": ("amqp", "amqps"),
}
EXAMPLES = {
    "broker": "redis://user:password@host:6379/0",
    "results": "amqp://user:password@host:5672/vhost",
}
_ENCODE = "write @ as %40, : as %3A, / as %2F, # as %23, ? as %3F, % as %25"


def server_url(
    host: str,
    scheme: str,
    port: int,
    user: str,
    password: str,
    path: t.Any,
    options: t.Mapping[str, t.Any] | None = None,
) -> str:
    """Return the URL of a server; user, password and path may hold any character.

    An option without a value is left out of the query.
    """
    address = f"[{host}]" if ":" in str(host) and not str(host).startswith("[") else host
    credentials = f"{quote(str(user), safe='')}:{quote(str(password), safe='')}"
    query = "&".join(f"{name}={quote(str(value), safe='/')}" for name, value in (options or {}).items() if value)
    return f"{scheme}://{credentials}@{address}:{port}/{quote(str(path), safe='')}{'?' if query else ''}{query}"


def url_problem(value: t.Any, kind: str) -> str:
    """Return why *value* is not a URL of a broker or a result store, or an empty string. Never contains the value."""
    example = EXAMPLES[kind]
    if not isinstance(value, str) or not value:
        return f"is missing; it looks like {example}"
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        return f"contains a blank, a line break or another control character; it looks like {example}"
    schemes = set()
    for number, url in enumerate(value.split(";"), 1):
        which = f"URL {number} of {value.count(';') + 1} in it " if ";" in value else ""
        problem = _problem(url, kind)
        if problem:
            return f"{which}{problem}".strip()
        schemes.add(url.split("://", 1)[0])
    if len(schemes) > 1:
        return f"mixes {' and '.join(sorted(schemes))}; all its URLs have one scheme"
    return ""


def _problem(url: str, kind: str) -> str:
    example = EXAMPLES[kind]
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES[kind]:
        *first, last = [f"{name}://" for name in SCHEMES[kind]]
        return f"must start with {', '.join(first)} or {last}; it looks like {example}"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if scheme == "redis+socket":
        return (
            "" if rest.startswith(("/", ":")) or "@" in authority else "has no path of a socket: redis+socket:///path"
        )
    if authority.count("@") > 1 or (not authority.count("@") and "@" in rest):
        return f"has a user or password with a character that is not percent-encoded: {_ENCODE}"
    credentials, at, _host = authority.rpartition("@")
    user, colon, password = credentials.partition(":")
    if not at or not colon or not password:
        return f"has no password; it looks like {example}"
    if not user and kind == "results":
        return f"has no user; it looks like {example}"
    if ":" in password or re.search(r"%(?![0-9A-Fa-f]{2})", credentials):
        return f"has a user or password with a character that is not percent-encoded: {_ENCODE}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "has a port that is not a number from 1 to 65535, or an invalid host"
    if port == 0:
        return "has a port that is not a number from 1 to 65535, or an invalid host"
    if not parts.hostname or not re.fullmatch(r"[A-Za-z0-9._:%-]+", parts.hostname):
        return f"has no host; it looks like {example}"
    if parts.fragment:
        return f"has a '#': {_ENCODE}"
    path = parts.path.lstrip("/")
    if kind == "broker" and path and not path.isdigit():
        return "must end with the number of a database, such as /0"
    if kind == "results" and not path:
        return "must end with the name of a virtual host, such as /celery"
    if kind == "results" and "/" in path:
        return "has a virtual host with a '/': write it as %2F"
    return ""


def url_endpoints(value: str) -> list[dict[str, t.Any]]:
    """Return host and port of every server in a URL, or in several joined by semicolons."""
    endpoints = []
    for url in value.split(";"):
        parts = urlsplit(url)
        if parts.scheme in DEFAULT_PORTS and parts.hostname:
            endpoints.append({"host": parts.hostname, "port": parts.port or DEFAULT_PORTS[parts.scheme]})
    return endpoints


def url_passwords(value: str) -> list[dict[str, str]]:
    """Return user and password of every URL, decoded."""
    found = [urlsplit(url) for url in value.split(";")]
    return [{"user": unquote(parts.username or ""), "password": unquote(parts.password or "")} for parts in found]

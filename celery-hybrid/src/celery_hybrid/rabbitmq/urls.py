"""``result_backend`` as a URL: parsed without ever echoing a password."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_hybrid.errors import OptionError

SCHEMES = {"amqp": 5672, "amqps": 5671}
QUERY_OPTIONS = ("ca_certs", "certfile", "keyfile", "login_method")
_EXAMPLE = "amqp://USER:PASSWORD@HOST:5672/VHOST"


@dataclass(frozen=True)
class Server:
    """One host of the result store and how to log in to it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: bool

    @property
    def address(self) -> str:
        """Host and port, as py-amqp and people write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.address} (vhost {self.vhost}, user {self.user})"


def parse(url: str) -> tuple[list[Server], dict[str, str]]:
    """Return the hosts of a URL and the options in its query.

    Hosts of a cluster are separated by ``;``; each is a whole URL, or only ``host[:port]`` when it has the scheme,
    user, password and vhost of the first.

    Raises:
        OptionError: the URL is malformed, in words that do not repeat it.
    """
    servers: list[Server] = []
    options: dict[str, str] = {}
    for number, part in enumerate(_split(url), start=1):
        first = servers[0] if servers else None
        server, query = _parse_one(part, number, first)
        servers.append(server)
        options.update(query)
    if not servers:
        raise OptionError(f"result_backend is empty: write it as {_EXAMPLE}.")
    if len({server.tls for server in servers}) > 1:
        raise OptionError("result_backend mixes amqp:// and amqps://: use one scheme for all hosts of a cluster.")
    return servers, options


def _split(url: str) -> list[str]:
    return [part.strip() for part in url.split(";") if part.strip()]


def _parse_one(part: str, number: int, first: Server | None) -> tuple[Server, dict[str, str]]:
    which = f"result_backend, host {number}"
    if "://" not in part:
        if first is None:
            raise OptionError(f"{which}: the scheme is missing, write it as {_EXAMPLE}.")
        part = f"{'amqps' if first.tls else 'amqp'}://{part}"
    try:
        parts = urlsplit(part)
        port = parts.port
    except ValueError:
        # The original message can quote a piece of the password.
        raise OptionError(
            f"{which}: it is not a URL; write it as {_EXAMPLE}, with special characters of user and password "
            "percent-encoded (urllib.parse.quote)."
        ) from None
    if parts.scheme not in SCHEMES:
        raise OptionError(f"{which}: the scheme must be amqp or amqps, not {parts.scheme!r}.")
    if not parts.hostname:
        raise OptionError(f"{which}: the host is missing, write it as {_EXAMPLE}.")
    if parts.fragment:
        raise OptionError(f"{which}: a '#' in user or password must be written as %23.")
    if parts.username and parts.password is not None:
        user, password = unquote(parts.username), unquote(parts.password)
    elif first is not None:
        user, password = first.user, first.password
    elif parts.username is None:
        user, password = "guest", "guest"
    else:
        user, password = unquote(parts.username), ""
    default_vhost = first.vhost if first is not None else "/"
    vhost = default_vhost if parts.path in {"", "/"} else unquote(parts.path[1:])
    server = Server(parts.hostname, port or SCHEMES[parts.scheme], user, password, vhost, parts.scheme == "amqps")
    return server, _query(parts.query, which)


def _query(query: str, which: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in QUERY_OPTIONS:
            raise OptionError(
                f"{which}: the URL has no option {name!r}. It takes {', '.join(QUERY_OPTIONS)}; all others go into "
                "result_backend_transport_options."
            )
        options[name] = value
    return options

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small client of RabbitMQ's management API, and what modules that use it share."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from ansible.module_utils.urls import open_url

OF_VHOSTS = frozenset({"bindings", "exchanges", "policies", "queues"})
OF_SERVER = frozenset({"definitions", "nodes", "overview", "whoami"})


class ApiError(Exception):
    """The management API did not do what was asked; the message says why and what to do."""


class LoginRefusedError(ApiError):
    """The management API answers, but does not accept the user and the password."""


class UnreachableError(ApiError):
    """The management API does not answer."""


class Api(Protocol):
    """What the topology needs of the management API."""

    def get(self, *path: str, query: str = "") -> Any: ...

    def send(self, method: str, *path: str, body: Any = None, query: str = "") -> Any: ...


class ManagementApi:
    """The management API of one server.

    Args:
        url: base URL, for example ``http://127.0.0.1:15672``.
        username: a user with the tag ``administrator`` (``monitoring`` is enough to read).
        password: its password; it goes into a header, never into a URL.
        validate_certs: verify the server's certificate.
        ca_path: file of the CA certificate, or None for the system's.
        client_cert: file of a certificate that the server asks for, or None.
        client_key: file of its key, unless the certificate's file has it.
        timeout: seconds for each request.
    """

    def __init__(
        self,
        url: str,
        username: str,
        password: str,
        validate_certs: bool = True,
        ca_path: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        timeout: float = 30,
    ) -> None:
        self._url = url.rstrip("/")
        self._username = username
        self._options = {
            "url_username": username,
            "url_password": password,
            "force_basic_auth": True,
            "validate_certs": validate_certs,
            "ca_path": ca_path,
            "client_cert": client_cert,
            "client_key": client_key,
            "timeout": timeout,
            "use_proxy": False,
        }

    def get(self, *path: str, query: str = "") -> Any:
        """Return what the API answers, decoded."""
        return json.loads(self._request("GET", path, query=query) or b"null")

    def send(self, method: str, *path: str, body: Any = None, query: str = "") -> Any:
        """Send a request that changes something; return what the API answers, decoded."""
        return json.loads(self._request(method, path, body, query) or b"null")

    def _request(self, method: str, path: tuple[str, ...], body: Any = None, query: str = "") -> bytes:
        where = "/".join(quote(part, safe="") for part in path)
        try:
            with open_url(
                f"{self._url}/api/{where}{query}",
                method=method,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json"},
                **self._options,
            ) as response:
                return response.read()
        except HTTPError as exc:
            refusal = LoginRefusedError if exc.code == 401 else ApiError
            raise refusal(self._refusal(exc, f"{method} {where}")) from exc
        except (URLError, OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "reason", exc)
            if isinstance(reason, ssl.SSLError):
                raise ApiError(
                    f"The management API at {self._url} is not trusted: {reason}. Check that 'url' names the server as "
                    "its certificate does, that 'ca_path' is the CA that signed it, and 'client_cert' if the "
                    "server asks for one."
                ) from exc
            raise UnreachableError(
                f"The management API at {self._url} cannot be reached: {reason}. Check 'url', that RabbitMQ runs, "
                "and that its plugin rabbitmq_management is enabled."
            ) from exc

    def _refusal(self, exc: HTTPError, request: str) -> str:
        if exc.code == 401:
            return (
                f"The management API at {self._url} refuses the user {self._username!r}: its password is wrong, or it "
                "has neither the tag 'administrator' nor 'monitoring'."
            )
        try:
            answer = json.loads(exc.read())
            reason = str(answer.get("reason") or answer.get("error"))
        except (ValueError, AttributeError):
            reason = exc.reason
        return f"RabbitMQ refuses {request} (HTTP {exc.code}): {reason}"


def objects_of(api: Api, vhost: str | None, wanted: dict[str, list[str] | None]) -> dict[str, Any]:
    """Return what the API lists, by kind.

    Args:
        api: of the server.
        vhost: whose objects are listed, where a kind belongs to a virtual host; None where none does.
        wanted: the fields of each kind; none for all.

    Raises:
        ApiError: a request failed.
        ValueError: there is no such kind, or the virtual host of one is missing.
    """
    unknown = sorted(set(wanted) - OF_VHOSTS - OF_SERVER)
    if unknown:
        raise ValueError(
            f"objects: {', '.join(unknown)} cannot be read; take {', '.join(sorted(OF_VHOSTS | OF_SERVER))}."
        )
    of_vhosts = sorted(set(wanted) & OF_VHOSTS)
    if vhost is None and of_vhosts:
        raise ValueError(f"vhost: it is needed to read {', '.join(of_vhosts)}.")
    found = {}
    for kind, fields in wanted.items():
        path = (kind, vhost) if vhost is not None and kind in OF_VHOSTS else (kind,)
        found[kind] = api.get(*path, query=f"?columns={','.join(fields)}" if fields else "")
    return found


def api_arguments() -> dict[str, dict[str, Any]]:
    """Return the options that every module with this API has; documented in the fragment rabbitmq_api."""
    return {
        "url": {"type": "str"},
        "login_protocol": {"type": "str", "choices": ["http", "https"], "default": "http"},
        "login_host": {"type": "str", "default": "127.0.0.1"},
        "login_port": {"type": "int", "default": 15672},
        "username": {"type": "str", "required": True, "aliases": ["login_user"]},
        "password": {"type": "str", "required": True, "no_log": True, "aliases": ["login_password"]},
        "validate_certs": {"type": "bool", "default": True},
        "ca_path": {"type": "path", "aliases": ["ca_cert", "cacert"]},
        "client_cert": {"type": "path"},
        "client_key": {"type": "path", "no_log": False},
        "timeout": {"type": "float", "default": 30.0},
    }


def api_from(parameters: dict[str, Any]) -> ManagementApi:
    """Return the API that a module's parameters name."""
    given = {name: parameters[name] for name in api_arguments() if not name.startswith("login_")}
    if given["url"] is None:
        given["url"] = "{login_protocol}://{login_host}:{login_port}".format(**parameters)
    return ManagementApi(**given)

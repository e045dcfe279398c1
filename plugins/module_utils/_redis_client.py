# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The little of Redis' protocol that the administration of a server needs.

A managed host has no Python client of Redis, and redis-cli tells errors from answers only by their looks.
Protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP2).
"""

from __future__ import annotations

import socket
import ssl
import time
import typing as t


class RedisError(Exception):
    """Redis answered with an error; the text is Redis' own."""


class RefusedError(RedisError):
    """Redis does not take the password, or the user lacks a right."""


class UnreachableError(Exception):
    """Redis cannot be reached, or went away."""


class CertificateError(UnreachableError):
    """The certificate of the server is not one to trust, so that nothing was sent."""


def tls_context(
    ca_path: str | None = None, client_cert: str | None = None, client_key: str | None = None
) -> ssl.SSLContext:
    """Return TLS that verifies the server and its name.

    Raises:
        ValueError: a file cannot be read or does not hold what it should.
    """
    try:
        # With 'ca_path' only that CA: any of the system's could vouch for another server.
        context = ssl.create_default_context(cafile=ca_path)
    except OSError as exc:
        raise ValueError(f"'ca_path' {ca_path} is not a file with certificates: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client_cert:
        try:
            context.load_cert_chain(client_cert, client_key)
        except OSError as exc:
            files = " and ".join(filter(None, (client_cert, client_key)))
            raise ValueError(
                f"'client_cert' and 'client_key' are not a certificate with its key ({files}): {exc}"
            ) from exc
    return context


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout=timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(host)
    except BaseException:
        connection.close()
        raise
    return connection


class RedisClient:
    """A connection to one server, logged in.

    Args:
        host: name or address, or the path of a socket of this host.
        port: TCP port.
        username: ACL user.
        password: its password.
        timeout: seconds for the connection and for each answer.
        tls: what :func:`tls_context` returns, or None for a plaintext connection.
        server_hostname: name that the certificate must be for, when it is not *host*.

    Raises:
        UnreachableError: there is no answer.
        CertificateError: the one that answers cannot prove who it is.
        RefusedError: the login is wrong.
    """

    def __init__(
        self,
        host: str,
        port: int,
        username: str,
        password: str,
        timeout: float = 10,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        try:
            self._socket = _connect(host, port, timeout)
            if tls:
                self._socket = tls.wrap_socket(self._socket, server_hostname=server_hostname or host)
        except ssl.SSLCertVerificationError as exc:
            raise CertificateError(
                f"The certificate of Redis at {host}:{port} is not trusted: {exc.verify_message}. Check 'ca_path', and "
                f"that the certificate is for {server_hostname or host!r} (or name another 'server_hostname')"
            ) from exc
        except ssl.SSLError as exc:
            raise UnreachableError(f"Redis at {host}:{port} does not speak TLS with us: {exc}") from exc
        except OSError as exc:
            raise UnreachableError(f"Redis at {host}:{port} cannot be reached: {exc}") from exc
        self._stream = self._socket.makefile("rb")
        self.call("AUTH", username, password)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> RedisClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def call(self, *words: t.Any) -> t.Any:
        """Send a command and return its answer: text, integer, None or a list of those.

        An error is raised. Inside a list, as EXEC answers, it is an item like others.
        """
        parts = [str(word).encode() for word in words]
        request = b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)])
        try:
            self._socket.sendall(request)
            answer = self._answer()
        except OSError as exc:
            # With TLS 1.3 a server that wants a certificate says so only now.
            raise UnreachableError(f"Redis went away: {exc}{self._perhaps_tls()}") from exc
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def _answer(self) -> t.Any:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise UnreachableError("Redis closed the connection" + self._perhaps_tls())
        kind, text = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"-":
            return (RefusedError if text.split()[0] in ("WRONGPASS", "NOAUTH", "NOPERM") else RedisError)(text)
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == "-1" else self._stream.read(int(text) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if text == "-1" else [self._answer() for _element in range(int(text))]
        return text

    def _perhaps_tls(self) -> str:
        return "" if isinstance(self._socket, ssl.SSLSocket) else " (a port that speaks TLS does that; see 'tls')"


def client_arguments() -> dict[str, dict[str, t.Any]]:
    """Return the options that every module with this client has; documented in the fragment redis_server."""
    return {
        "host": {"type": "str", "default": "127.0.0.1", "aliases": ["login_host"]},
        "port": {"type": "int", "default": 6379, "aliases": ["login_port"]},
        "username": {"type": "str", "required": True, "aliases": ["login_user"]},
        "password": {"type": "str", "required": True, "no_log": True, "aliases": ["login_password"]},
        "tls": {"type": "bool", "default": False},
        "server_hostname": {"type": "str"},
        "ca_path": {"type": "path", "aliases": ["ca_certs"]},
        "client_cert": {"type": "path"},
        # The name of a file, no secret.
        "client_key": {"type": "path", "no_log": False},
        "wait": {"type": "float", "default": 0.0},
    }


def client_from(parameters: t.Mapping[str, t.Any]) -> RedisClient:
    """Return the connection that a module's parameters name; while the server starts or loads its data, try again.

    Raises:
        ValueError: a file for TLS is wrong.
    """
    tls = None
    if parameters["tls"]:
        tls = tls_context(*(parameters[name] for name in ("ca_path", "client_cert", "client_key")))
    login = [parameters[name] for name in ("host", "port", "username", "password")]
    deadline = time.monotonic() + parameters["wait"]
    while True:
        try:
            client = RedisClient(*login, tls=tls, server_hostname=parameters["server_hostname"])
            # While it loads, a server takes the login but nothing else.
            client.call("PING")
        except (RefusedError, CertificateError):
            raise
        except (UnreachableError, RedisError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
        else:
            return client

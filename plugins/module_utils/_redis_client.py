# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The little of Redis' protocol that the administration of a server needs.

A managed host has no Python client of Redis, and redis-cli tells errors from answers only by their looks.
Protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP2).
"""

from __future__ import annotations

import socket
import typing as t


class RedisError(Exception):
    """Redis answered with an error; the text is Redis' own."""


class RefusedError(RedisError):
    """Redis does not take the password, or the user lacks a right."""


class UnreachableError(Exception):
    """Redis cannot be reached, or went away."""


class RedisClient:
    """A connection to one server, logged in.

    Args:
        host: name or address.
        port: TCP port.
        username: ACL user.
        password: its password.
        timeout: seconds for the connection and for each answer.

    Raises:
        UnreachableError: nobody answers.
        RefusedError: the login is wrong.
    """

    def __init__(self, host: str, port: int, username: str, password: str, timeout: float = 10) -> None:
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout)
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
        """Send a command and return its answer: text, integer, None or a list of those."""
        parts = [str(word).encode() for word in words]
        request = b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)])
        try:
            self._socket.sendall(request)
            return self._answer()
        except OSError as exc:
            raise UnreachableError(f"Redis went away: {exc}") from exc

    def _answer(self) -> t.Any:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise UnreachableError("Redis closed the connection")
        kind, text = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"-":
            raise (RefusedError if text.split()[0] in ("WRONGPASS", "NOAUTH", "NOPERM") else RedisError)(text)
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == "-1" else self._stream.read(int(text) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if text == "-1" else [self._answer() for _ in range(int(text))]
        return text

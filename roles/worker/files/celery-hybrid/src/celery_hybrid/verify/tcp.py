"""Reachability, with a sentence for each way to fail."""

from __future__ import annotations

import socket

from .report import Failed


def reach(host: str, port: int, timeout: float) -> str:
    """Open and close a TCP connection.

    Args:
        host: name or address.
        port: TCP port.
        timeout: seconds.

    Returns:
        ``host:port``.

    Raises:
        Failed: nobody there.
    """
    place = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return place
    except socket.gaierror as exc:
        raise Failed(
            f"the name {host!r} has no address: {exc.strerror}", "Correct the host in the URL, or the name service."
        ) from exc
    except ConnectionRefusedError as exc:
        raise Failed(f"{place} refuses the connection: nothing listens there") from exc
    except TimeoutError as exc:
        raise Failed(f"{place} does not answer within {timeout:g} s") from exc
    except OSError as exc:
        raise Failed(f"{place} cannot be reached: {exc.strerror or exc}") from exc

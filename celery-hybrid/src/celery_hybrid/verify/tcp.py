"""Reachability, with a message for each way to fail."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

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
        Failed: nothing listens there.
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


#: A certificate that ends sooner fails its check: time enough to renew it by day.
LEAST_DAYS = 7
RENEW = (
    "Renew the certificate of that host (playbook celeryops.hybrid.certificates, if it came from there) and run the "
    "site playbook: nothing restarts for it."
)


def shaken(sock: Any) -> str:
    """Tell how a connection is encrypted, and for how long its certificate is good.

    Args:
        sock: the socket of a connection that the checked client has made, so that these are its own rules.

    Raises:
        Failed: it is not encrypted, trusts any server, or the certificate ends soon.
    """
    if not isinstance(sock, ssl.SSLSocket):
        raise Failed("the connection is not encrypted")
    if sock.context.verify_mode != ssl.CERT_REQUIRED or not sock.context.check_hostname:
        raise Failed(
            "certificate and name of the server are not verified",
            "Write ssl_cert_reqs=required&ssl_check_hostname=true into the URL (the worker role does), and nothing "
            "else into broker_use_ssl.",
        )
    ends = ssl.cert_time_to_seconds(str((sock.getpeercert() or {})["notAfter"]))
    days = int((ends - time.time()) // 86400)
    if days < LEAST_DAYS:
        raise Failed(f"the certificate ends in {days} days")
    return f"{sock.version()}, certificate and name verified, good for {days} days"

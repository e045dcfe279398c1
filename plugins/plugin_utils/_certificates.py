# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates on the control node, judged before any of them reaches a host.

``cryptography`` is there because ansible-core needs it for ansible-vault.
"""

from __future__ import annotations

import datetime
import ipaddress
import typing as t

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
except ImportError:  # ansible-test imports every file without it; a control node always has it
    x509 = serialization = None
    InvalidSignature = Exception

_MAKE = "Run 'ansible-playbook celeryops.hybrid.certificates', which makes"


def now() -> datetime.datetime:
    """Return the present time, aware of its zone."""
    return datetime.datetime.now(datetime.UTC)


def read_certificates(text: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, in its order.

    Raises:
        ValueError: the text holds none, or one that cannot be read.
    """
    return x509.load_pem_x509_certificates(text.encode())


def days_left(text: str) -> int:
    """Return the number of whole days until the first of the certificates in *text* ends; negative when it has."""
    ends = min(certificate.not_valid_after_utc for certificate in read_certificates(text))
    return (ends - now()).days


def certificate_problems(
    texts: t.Mapping[str, str], prefix: str, paths: t.Mapping[str, str], names: t.Sequence[str] = ()
) -> list[str]:
    """Return a sentence for everything that keeps a server or a client from working with its certificate.

    Args:
        texts: what the files hold: ``ca``, and ``certificate`` with ``key``; empty where there is no such file.
        prefix: what the settings begin with, such as ``redis_tls``.
        paths: the paths of the files, by the same names. A file without a path is not wanted.
        names: names and addresses that clients use, all of which the certificate must have.
    """
    named = {kind: f"{prefix}_{kind} ({path})" for kind, path in paths.items() if path}
    missing = [_missing(kind, setting, paths[kind]) for kind, setting in named.items() if not texts.get(kind)]
    if missing:
        return missing
    problems: list[str] = []
    read: dict[str, list[x509.Certificate]] = {}
    for kind in ("certificate", "ca"):
        if kind in named:
            try:
                read[kind] = read_certificates(texts[kind])
            except ValueError:
                problems.append(f"{named[kind]} holds no certificate in PEM form. Name the right file.")
    if "key" in named and "certificate" in read:
        problems += _key_problems(texts["key"], named["key"], read["certificate"][0])
    if "certificate" in read:
        problems += _time_problems(read["certificate"], named["certificate"])
        problems += _name_problems(read["certificate"][0], named["certificate"], names)
    if "ca" in read:
        problems += _time_problems(read["ca"][:1] if len(read["ca"]) == 1 else [], named["ca"])
    if "ca" in read and "certificate" in read and not signed_by(read["certificate"], read["ca"]):
        problems.append(
            f"{named['certificate']} was not signed by a CA of {named['ca']}, so every client would refuse it. "
            f"Name the CA that signed it, and put certificates in between behind the server's own."
        )
    return problems


def signed_by(chain: t.Sequence[x509.Certificate], authorities: t.Sequence[x509.Certificate]) -> bool:
    """Return whether a certificate leads to one of the CAs, by way of those that follow it."""
    current, others = chain[0], list(chain[1:])
    while True:
        if any(current == authority or _issued(current, authority) for authority in authorities):
            return True
        issuer = next((other for other in others if _issued(current, other)), None)
        if issuer is None:
            return False
        others.remove(issuer)
        current = issuer


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _missing(kind: str, setting: str, path: str) -> str:
    if not path.startswith("/"):
        return f'{setting} must be an absolute path on the control node, such as "{{{{ inventory_dir }}}}/tls/…".'
    return f"{setting}: the control node has no such file, or it is empty. {_MAKE} {_one(kind)}, or name your own."


def _one(kind: str) -> str:
    return {"ca": "a CA", "key": "the key", "certificate": "the certificate"}[kind]


def _key_problems(text: str, setting: str, certificate: x509.Certificate) -> list[str]:
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except TypeError:
        return [
            f"{setting} has a passphrase, which a server cannot type. Take it off, and encrypt the file with "
            "ansible-vault."
        ]
    except ValueError:
        return [f"{setting} holds no private key in PEM form. Name the right file."]
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form):
        return []
    return [f"{setting} is not the key of the certificate beside it. Name the two files that belong together."]


def _time_problems(certificates: t.Sequence[x509.Certificate], setting: str) -> list[str]:
    remedy = f"{_MAKE} a new one, or renew your own"
    for certificate in certificates:
        if certificate.not_valid_after_utc <= now():
            return [f"{setting} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}. {remedy}."]
        if certificate.not_valid_before_utc > now():
            return [
                f"{setting} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC. Look at the "
                "clock of the control node, or renew it."
            ]
    return []


def _name_problems(certificate: x509.Certificate, setting: str, names: t.Sequence[str]) -> list[str]:
    dns, addresses = _names_of(certificate)
    absent = [name for name in names if not _covered(name, dns, addresses)]
    if not absent:
        return []
    found = ", ".join(sorted(dns) + [str(address) for address in addresses]) or "none"
    return [
        f"{setting} is not for {', '.join(absent)}, by which clients connect, so they would refuse it; its names are "
        f"{found} (subjectAltName). Renew it with that name, or let clients use another."
    ]


def _names_of(certificate: x509.Certificate) -> tuple[set[str], list[t.Any]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        # Clients have not looked at the common name for years.
        return set(), []
    dns = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return dns, names.get_values_for_type(x509.IPAddress)


def _covered(name: str, dns: t.Collection[str], addresses: t.Sequence[t.Any]) -> bool:
    try:
        return ipaddress.ip_address(name) in addresses
    except ValueError:
        host = name.lower().rstrip(".")
        _label, _dot, domain = host.partition(".")
        return host in dns or (bool(domain) and f"*.{domain}" in dns)

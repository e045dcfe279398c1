"""Certificates on the control node: what keeps them from working is said before they reach a host."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.filter import certificate_days_left, certificate_problems
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

problems = certificate_problems.FilterModule().filters()["certificate_problems"]
left = certificate_days_left.FilterModule().filters()["certificate_days_left"]

PATHS = {"certificate": "/srv/tls/broker1.pem", "key": "/srv/tls/broker1.key", "ca": "/srv/tls/ca.pem"}
NAMES = ["broker1", "10.0.0.11"]


class Identity:
    """A key and a certificate, signed by another identity or by itself."""

    def __init__(
        self, name: str, issuer: Identity | None = None, names: list[str] = NAMES, days: float = 90, ca: bool = False
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name if issuer else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=100))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), False)
        self.certificate = builder.sign(issuer.key if issuer else self.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def private(self, passphrase: bytes = b"") -> str:
        protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        return self.key.private_bytes(*form).decode()


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


CA = Identity("ca", names=[], ca=True)
FOREIGN = Identity("ca", names=[], ca=True)
BETWEEN = Identity("between", CA, names=[], ca=True)
SERVER = Identity("broker1", CA)


def judged(**texts: str) -> list[str]:
    files = {"certificate": SERVER.pem, "key": SERVER.private(), "ca": CA.pem} | texts
    return problems(files, "redis_tls", PATHS, NAMES)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        # While one authority follows another, both are trusted.
        {"ca": FOREIGN.pem + CA.pem},
        {"certificate": (leaf := Identity("broker1", BETWEEN)).pem + BETWEEN.pem, "key": leaf.private()},
        # A certificate that is its own authority.
        {"certificate": (own := Identity("own")).pem, "key": own.private(), "ca": own.pem},
        {"certificate": (any_host := Identity("w", CA, ["broker1", "10.0.0.11", "*.example.org"])).pem}
        | {"key": any_host.private()},
    ],
)
def test_what_works_has_no_problem(texts: dict[str, str]) -> None:
    assert judged(**texts) == []


def with_key(**kwargs: Any) -> dict[str, str]:
    identity = Identity("broker1", kwargs.pop("issuer", CA), **kwargs)
    return {"certificate": identity.pem, "key": identity.private()}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"certificate": ""}, "redis_tls_certificate (/srv/tls/broker1.pem): the control node has no such file"),
        ({"key": ""}, "celeryops.hybrid.certificates"),
        ({"certificate": "rubbish"}, "redis_tls_certificate (/srv/tls/broker1.pem) holds no certificate"),
        ({"ca": "rubbish"}, "redis_tls_ca (/srv/tls/ca.pem) holds no certificate"),
        ({"key": "rubbish"}, "redis_tls_key (/srv/tls/broker1.key) holds no private key"),
        ({"key": SERVER.private(b"secret")}, "ansible-vault"),
        ({"key": CA.private()}, "not the key of the certificate"),
        (with_key(days=-1), "has expired on"),
        (with_key(names=["broker1"]), "is not for 10.0.0.11"),
        (with_key(names=[]), "its names are none"),
        (with_key(names=["*.broker1", "10.0.0.11"]), "is not for broker1"),
        (with_key(issuer=FOREIGN), "was not signed by a CA of redis_tls_ca"),
        # The one in between is missing.
        (with_key(issuer=BETWEEN), "was not signed by a CA"),
        ({"ca": FOREIGN.pem}, "was not signed by a CA"),
        ({"ca": Identity("ca", names=[], days=-1, ca=True).pem}, "redis_tls_ca (/srv/tls/ca.pem) has expired on"),
    ],
)
def test_what_does_not_work_gives_a_reason(texts: dict[str, str], words: str) -> None:
    found = judged(**texts)
    assert any(words in sentence for sentence in found), found
    assert all("PRIVATE" not in sentence for sentence in found)


def test_a_wildcard_is_for_one_label() -> None:
    texts = with_key(names=["*.example.org"]) | {"ca": CA.pem}
    assert problems(texts, "redis_tls", PATHS, ["a.example.org"]) == []
    assert problems(texts, "redis_tls", PATHS, ["a.b.example.org"])


def test_a_path_must_be_absolute() -> None:
    assert "absolute path" in problems({}, "redis_tls", {"ca": "tls/ca.pem"})[0]


def test_what_has_no_path_is_not_wanted() -> None:
    assert problems({}, "worker_tls", {"certificate": "", "key": ""}) == []


def test_days_until_the_first_ends() -> None:
    assert left(SERVER.pem + Identity("soon", days=5.5).pem) == 5
    assert left(Identity("gone", days=-1).pem) < 0
    with pytest.raises(AnsibleFilterError, match="PEM"):
        left("rubbish")

"""The client of Redis over TLS, against a server that only shakes hands."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _redis_client as client
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Authority:
    """Makes certificates that are good for an hour."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.path = self._write("ca", self._certificate(self._key, self._name, ca=True))

    def issue(self, name: str, address: str | None = None) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        return self._write(name, self._certificate(key, subject, names), key)

    def _certificate(self, key: Any, subject: x509.Name, names: Any = (), *, ca: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate, key: Any = None) -> str:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        if key:
            pem += key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        path = self.folder / f"{name}.pem"
        path.write_bytes(pem)
        return str(path)


class Server:
    """Says OK to everything, over TLS when it has a context."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    stream = self._context.wrap_socket(connection, server_side=True) if self._context else connection
                    while stream.recv(4096):
                        stream.sendall(b"+OK\r\n")
                except OSError:
                    continue

    def close(self) -> None:
        # Wakes accept() up, which close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


class World:
    """Two authorities and the servers of a test."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ours")
        self.stranger = Authority(folder, "stranger")
        self.servers: list[Server] = []

    def serve(self, certificate: str | None, *, wants_clients_of: str | None = None) -> int:
        context = None
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            if wants_clients_of:
                context.load_verify_locations(wants_clients_of)
                context.verify_mode = ssl.CERT_REQUIRED
        self.servers.append(Server(context))
        return self.servers[-1].port


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for server in world.servers:
        server.close()


def parameters(port: int, **changes: Any) -> dict[str, Any]:
    defaults = {name: option.get("default") for name, option in client.client_arguments().items()}
    return defaults | {"port": port, "username": "admin", "password": "secret", "tls": True} | changes


def answer(port: int, **changes: Any) -> Any:
    with client.client_from(parameters(port, **changes)) as connection:
        return connection.call("PING")


def test_a_server_with_a_good_certificate_is_believed(world: World) -> None:
    port = world.serve(world.authority.issue("broker1", "127.0.0.1"))
    assert answer(port, ca_path=world.authority.path) == "OK"


def test_the_name_of_the_certificate_may_be_another_than_the_address(world: World) -> None:
    port = world.serve(world.authority.issue("broker1"))
    assert answer(port, ca_path=world.authority.path, server_hostname="broker1") == "OK"


class TestRefusal:
    """Nothing is sent to a server that cannot prove who it is."""

    CASES: ClassVar = {
        "the certificate is for another name": ("ours", "ours", None, "server_hostname"),
        "the certificate is for yet another name": ("ours", "ours", "broker2", "broker2"),
        "the certificate is of another authority": ("stranger", "ours", "broker1", "ca_path"),
        "the authority is not in the system": ("ours", None, "broker1", "ca_path"),
    }

    @pytest.mark.parametrize(("issuer", "trusted", "name", "word"), CASES.values(), ids=CASES)
    def test_no_trust(self, world: World, issuer: str, trusted: str | None, name: str | None, word: str) -> None:
        authorities = {"ours": world.authority, "stranger": world.stranger}
        port = world.serve(authorities[issuer].issue("broker1"))
        ca_path = authorities[trusted].path if trusted else None
        # Not tried again, however long the module may wait for the server.
        with pytest.raises(client.CertificateError, match=word):
            answer(port, ca_path=ca_path, server_hostname=name, wait=60)

    def test_plaintext_server(self, world: World) -> None:
        port = world.serve(None)
        with pytest.raises(client.UnreachableError, match="does not speak TLS"):
            answer(port, ca_path=world.authority.path)

    def test_plaintext_client_is_told_to_use_tls(self, world: World) -> None:
        port = world.serve(world.authority.issue("broker1", "127.0.0.1"))
        with pytest.raises(client.UnreachableError, match="'tls'"):
            answer(port, tls=False)


def test_tls_is_not_old(world: World) -> None:
    context = client.tls_context(world.authority.path)
    assert (context.minimum_version, context.check_hostname) == (ssl.TLSVersion.TLSv1_2, True)


def test_a_client_shows_its_certificate(world: World) -> None:
    port = world.serve(world.authority.issue("broker1", "127.0.0.1"), wants_clients_of=world.authority.path)
    with pytest.raises(client.UnreachableError):
        answer(port, ca_path=world.authority.path)
    assert answer(port, ca_path=world.authority.path, client_cert=world.authority.issue("worker1")) == "OK"


@pytest.mark.parametrize("option", ["ca_path", "client_cert"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_wrong_file_is_named(tmp_path: Path, option: str, content: str | None) -> None:
    file = tmp_path / "file.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"'{option}'.*{file}"):
        answer(1, **{option: str(file)})

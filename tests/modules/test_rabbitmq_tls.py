"""rabbitmq_topology and TLS: a certificate is verified, always, and one that is not trusted is told as such."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import threading
from contextlib import closing, suppress

import pytest
from ansible_collections.celeryops.hybrid.plugins.modules import rabbitmq_topology_info


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A throw-away authority, a certificate of localhost that it has signed, and one of a client."""
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=throw-away", "-days", "1")
    for name in ("server", "client"):
        (folder / "san").write_text("subjectAltName=DNS:localhost")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["any-client", "known-clients"])
def port(request, host, authority):
    """TLS in front of the management API of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    if request.param:
        context.load_verify_locations(authority / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED

    def copy(client, behind):
        # By one thread: two must not use a TLS connection at the same time.
        with client, behind, suppress(OSError):
            while True:
                ready = [client] if client.pending() else select.select([client, behind], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (behind if source is client else client).sendall(data)

    def serve(plain):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                client = context.wrap_socket(client, server_side=True)
                behind = socket.create_connection(("127.0.0.1", plain))
            except OSError:
                client.close()
                continue
            threading.Thread(target=copy, args=(client, behind), daemon=True).start()

    with host.tunnel(15672) as plain, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, args=(plain,), daemon=True).start()
        yield listener.getsockname()[1], request.param


def test_only_a_trusted_server_is_talked_to(port, authority, secrets, module):
    number, known_only = port
    login = {"username": "admin", "password": secrets["rabbitmq_admin"], "timeout": 20}
    client = {"client_cert": str(authority / "client.pem"), "client_key": str(authority / "client.key")}
    trusted = {"url": f"https://localhost:{number}", "ca_path": str(authority / "ca.pem")}

    assert "version" in module(rabbitmq_topology_info, **login, **trusted, **client)
    # An authority that nobody knows, and a name that the certificate does not have.
    for wrong in ({"ca_path": None}, {"url": f"https://127.0.0.1:{number}"}):
        refused = module(rabbitmq_topology_info, **login, **{**trusted, **client, **wrong})
        assert "is not trusted" in refused["msg"], refused
        assert "ca_path" in refused["msg"]
    without = module(rabbitmq_topology_info, **login, **trusted)
    assert bool(without.get("failed")) == known_only, without

"""TLS with a certificate authority of one's own, client certificates, and several hosts in the URL."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

import pytest
from celery import states

from celery_hybrid.errors import ResultStoreError, ResultStoreUnreachableError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PORT, MUTUAL_PORT, PLAIN_PORT, CLOSED_PORT = 5681, 5682, 5683, 5684
FILES = "/var/lib/rabbitmq/test-tls"

# A root that both sides trust, a foreign one, and certificates of each; one has expired.
CERTIFICATES = f"""set -e; rm -rf {FILES}; mkdir -p {FILES}; cd {FILES}
root() {{ openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$1" -keyout $1.key -out $1.pem 2>/dev/null; }}
leaf() {{ openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout $1.key -out $1.csr 2>/dev/null
  printf 'subjectAltName=%s\\nextendedKeyUsage=serverAuth,clientAuth\\n' "$3" > $1.ext
  openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days ${{4:-2}} -extfile $1.ext -out $1.pem \
    2>/dev/null; }}
root ca; root foreign
leaf server ca IP:ADDRESS; leaf elsewhere ca DNS:other.example; leaf client ca DNS:client
leaf stranger foreign DNS:client; chmod 644 *.key
"""


def tls(certificate, verify):
    peer = "verify_peer},{fail_if_no_peer_cert,true}" if verify else "verify_none}"
    return (
        f'[{{cacertfile,"{FILES}/ca.pem"}},{{certfile,"{FILES}/{certificate}.pem"}},{{keyfile,"{FILES}/{certificate}.key"}},'
        f"{{verify,{peer}]"
    )


@pytest.fixture(scope="module")
def address(results_url):
    return urlsplit(results_url).hostname


@pytest.fixture(scope="module")
def listen(shell, address):
    """Open further ports of RabbitMQ; they are closed again, and were never in its configuration."""
    shell(CERTIFICATES.replace("ADDRESS", address))
    opened = []

    def start(port, options=None):
        what = f'"{address}", {port}'
        call = f"start_ssl_listener({{{what}}}, {options}, 2)" if options else f"start_tcp_listener({{{what}}}, 2)"
        shell.ctl(f"eval 'rabbit_networking:{call}.'")
        opened.append(port)

    def stop(port):
        opened.remove(port)
        shell.ctl(f"""eval 'rabbit_networking:stop_tcp_listener({{"{address}", {port}}}).'""")
        of_port = f"proplists:get_value(port, rabbit_reader:info(P, [port])) =:= {port}"
        close = 'rabbit_networking:close_connection(P, "the port is closed")'
        shell.ctl(f"eval '[{close} || P <- rabbit_networking:connections(), {of_port}].'")

    start.stop = stop
    yield start
    for port in opened:
        stop(port)
    shell(f"rm -rf {FILES}")


@pytest.fixture(scope="module")
def files(shell, listen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca.pem", "foreign.pem", "client.pem", "client.key", "stranger.pem", "stranger.key"):
        (folder / name).write_text(shell(f"cat {FILES}/{name}"))
    return folder


@pytest.fixture
def app_for(make_app, results_url, address):
    def make(port, scheme="amqps", **options):
        parts = urlsplit(results_url)
        app = make_app()
        app.conf.result_backend = f"{scheme}://{parts.username}:{parts.password}@{address}:{port}{parts.path}"
        app.conf.result_backend_transport_options = {**app.conf.result_backend_transport_options, **options}
        return app

    return make


def stores(app):
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, 1, states.SUCCESS)
    return app.AsyncResult(task_id).result == 1


@pytest.fixture(scope="module")
def ports(listen):
    listen(PORT, tls("server", verify=False))
    listen(MUTUAL_PORT, tls("server", verify=True))


def test_a_verified_server(ports, app_for, files):
    assert stores(app_for(PORT, ca_certs=str(files / "ca.pem")))


def test_options_in_the_url(ports, app_for, files):
    app = app_for(PORT)
    app.conf.result_backend += f"?ca_certs={files / 'ca.pem'}"
    assert stores(app)


@pytest.mark.parametrize("authority", [None, "foreign.pem"])
def test_a_server_of_an_unknown_authority_is_refused(ports, app_for, files, authority):
    app = app_for(PORT, ca_certs=str(files / authority) if authority else None)
    with pytest.raises(ResultStoreError, match=r"its certificate is not accepted: .* Check the host .*, and ca_certs"):
        stores(app)


def test_the_name_in_the_certificate_counts(listen, app_for, files):
    listen(CLOSED_PORT, tls("elsewhere", verify=False))
    with pytest.raises(ResultStoreError, match=r"certificate is not accepted: .*address mismatch"):
        stores(app_for(CLOSED_PORT, ca_certs=str(files / "ca.pem")))
    listen.stop(CLOSED_PORT)


def test_a_client_certificate(ports, app_for, files):
    def names(owner):
        return {"certfile": str(files / f"{owner}.pem"), "keyfile": str(files / f"{owner}.key")}

    trusted = {"ca_certs": str(files / "ca.pem")}
    assert stores(app_for(MUTUAL_PORT, **trusted, **names("client")))
    for wrong in ({}, names("stranger")):
        with pytest.raises(ResultStoreError):
            stores(app_for(MUTUAL_PORT, **trusted, **wrong))


def test_plain_where_tls_is_spoken(ports, app_for):
    with pytest.raises(ResultStoreUnreachableError):
        stores(app_for(PORT, scheme="amqp"))


def test_the_next_host_is_used_when_one_fails(listen, app_for, address):
    listen(PLAIN_PORT)
    app = app_for(PLAIN_PORT, scheme="amqp")
    # Only when the first fails is the second asked, whichever begins.
    app.conf.result_backend += f";{address}:{CLOSED_PORT}"
    assert stores(app)
    app.conf.result_backend = app.conf.result_backend.replace(str(CLOSED_PORT), "5672")
    other = app_for(PLAIN_PORT, scheme="amqp")
    other.conf.result_backend = app.conf.result_backend
    assert stores(other)
    listen.stop(PLAIN_PORT)
    assert stores(other)
    assert stores(other)

"""Every door of both servers, tried without the right to come in; and servers that no client should trust."""

from __future__ import annotations

import datetime
import ipaddress
import json
import secrets as random
import shlex
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stack import PROJECT, STATE

TLS = STATE / "tls" / PROJECT
REDIS, AMQP = 6380, 5671
FAKE_REDIS, FAKE_AMQP, MUTUAL_AMQP = 7000, 5690, 5699
FAKE_PASSWORD = random.token_hex(16)
STRANGER = "a-password-that-nobody-knows-42"


def context(client: str = "", **versions: Any) -> ssl.SSLContext:
    """What an application verifies the servers with; the certificate of a host makes it a known client."""
    made = ssl.create_default_context(cafile=TLS / "ca.pem")
    if client:
        made.load_cert_chain(TLS / f"{client}.pem", TLS / f"{client}.key")
    for name, version in versions.items():
        # OpenSSL itself would refuse old versions: it is the server that shall.
        made.set_ciphers("ALL:@SECLEVEL=0")
        setattr(made, name, version)
    return made


def connect(address: str, port: int, **kwargs: Any) -> ssl.SSLSocket:
    return context(**kwargs).wrap_socket(socket.create_connection((address, port), 10), server_hostname=address)


# Redis


def ask(connection: socket.socket, *commands: tuple[str, ...]) -> str:
    """Send commands to Redis; return the first line of the last answer."""
    answer = b""
    with connection, connection.makefile("rb") as stream:
        for words in commands:
            parts = [word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            answer = stream.readline()
    return answer.decode().strip()


def test_with_the_right_password_redis_lets_in(addresses, secrets):
    assert ask(connect(addresses["redis"], REDIS), ("AUTH", "celery", secrets["redis"]), ("PING",)) == "+PONG"


@pytest.mark.parametrize("command", [("PING",), ("LPUSH", "celery", "x"), ("CONFIG", "GET", "*"), ("ACL", "LIST")])
def test_without_a_password_redis_does_nothing(addresses, command):
    assert ask(connect(addresses["redis"], REDIS), command).startswith("-NOAUTH")


@pytest.mark.parametrize("user", ["celery", "admin", "default", "stranger"])
def test_redis_refuses_a_wrong_password(addresses, user):
    assert ask(connect(addresses["redis"], REDIS), ("AUTH", user, STRANGER)).startswith("-WRONGPASS")


@pytest.mark.parametrize("user", ["admin", "default"])
def test_the_password_of_workers_opens_no_other_account_of_redis(addresses, secrets, user):
    assert ask(connect(addresses["redis"], REDIS), ("AUTH", user, secrets["redis"])).startswith("-WRONGPASS")


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "SETUSER", "celery", "+@all"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("BGSAVE",),
        ("MODULE", "LIST"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("CLIENT", "LIST"),
        ("SUBSCRIBE", "a.channel.of.others"),
    ],
)
def test_workers_cannot_do_in_redis_what_is_not_theirs(addresses, secrets, command):
    login = ("AUTH", "celery", secrets["redis"])
    assert ask(connect(addresses["redis"], REDIS), login, command).startswith("-NOPERM")


# RabbitMQ


def rabbit(address: str, user: str, password: str, vhost: str = "celery", port: int = AMQP, client: str = "") -> Any:
    """Log in to RabbitMQ; the connection is the caller's to close."""
    files = {"certfile": str(TLS / f"{client}.pem"), "keyfile": str(TLS / f"{client}.key")} if client else {}
    tls = {"ca_certs": str(TLS / "ca.pem"), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": address, **files}
    timeouts = {"connect_timeout": 10, "read_timeout": 10, "write_timeout": 10}
    made = amqp.Connection(f"{address}:{port}", userid=user, password=password, virtual_host=vhost, ssl=tls, **timeouts)
    try:
        made.connect()
    except BaseException:
        made.collect()
        raise
    return made


def test_with_the_right_password_rabbitmq_lets_in(addresses, secrets):
    with rabbit(addresses["rabbitmq"], "client", secrets["rabbitmq_client"]) as connection:
        assert connection.connected


@pytest.mark.parametrize(
    ("user", "password"),
    [("client", ""), ("client", STRANGER), ("worker", STRANGER), ("guest", "guest"), ("stranger", STRANGER)],
)
def test_rabbitmq_refuses_a_wrong_login(addresses, user, password):
    with pytest.raises(amqp.AccessRefused):
        rabbit(addresses["rabbitmq"], user, password)


def test_the_administrator_of_rabbitmq_comes_from_the_host_itself(addresses, secrets):
    with pytest.raises((amqp.AccessRefused, amqp.NotAllowed)):
        rabbit(addresses["rabbitmq"], "admin", secrets["rabbitmq_admin"])


@pytest.mark.parametrize("vhost", ["/", "other", ""])
def test_rabbitmq_refuses_another_vhost(addresses, secrets, vhost):
    with pytest.raises(amqp.NotAllowed):
        rabbit(addresses["rabbitmq"], "client", secrets["rabbitmq_client"], vhost)


FORBIDDEN = {
    "declare a queue": lambda channel: channel.queue_declare("orders"),
    "delete a stream": lambda channel: channel.queue_delete("celery.results.0"),
    "purge dead letters": lambda channel: channel.queue_purge("celery.dead_letters"),
    "read dead letters": lambda channel: channel.basic_get("celery.dead_letters"),
    "write past the exchange": lambda channel: channel.basic_publish_confirm(amqp.Message("x"), "", "celery.results.0"),
    "declare an exchange": lambda channel: channel.exchange_declare("orders", "direct", auto_delete=False),
}


@pytest.mark.parametrize("user", ["client", "worker", "monitoring"])
@pytest.mark.parametrize("what", FORBIDDEN)
def test_users_of_rabbitmq_have_only_their_rights(addresses, secrets, user, what):
    with (
        rabbit(addresses["rabbitmq"], user, secrets[f"rabbitmq_{user}"]) as connection,
        pytest.raises(amqp.AccessRefused),
    ):
        FORBIDDEN[what](connection.channel())


# Ports


@pytest.mark.parametrize(
    ("group", "port"),
    [("redis", 6379), ("rabbitmq", 5672), ("rabbitmq", 15672), ("rabbitmq", 25672), ("rabbitmq", 4369)],
)
def test_what_is_not_encrypted_cannot_be_reached(addresses, group, port):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((addresses[group], port), 10)


@pytest.mark.parametrize(
    ("group", "port", "greeting"),
    [("redis", REDIS, b"*1\r\n$4\r\nPING\r\n"), ("rabbitmq", AMQP, b"AMQP\x00\x00\x09\x01")],
)
def test_tls_port_does_not_answer_plaintext(addresses, group, port, greeting):
    with socket.create_connection((addresses[group], port), 10) as connection:
        connection.sendall(greeting)
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b""
    # Nothing, or an alert of TLS.
    assert answer[:1] in (b"", b"\x15"), answer


@pytest.mark.parametrize(("group", "port"), [("redis", REDIS), ("rabbitmq", AMQP)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_of_tls_are_refused(addresses, group, port, version):
    with pytest.raises((ssl.SSLError, ConnectionResetError)) as refused:
        connect(addresses[group], port, minimum_version=version, maximum_version=version)
    assert isinstance(refused.value, ConnectionResetError) or "ALERT" in str(refused.value).upper()


@pytest.mark.parametrize(("group", "port"), [("redis", REDIS), ("rabbitmq", AMQP)])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_new_versions_of_tls_are_spoken(addresses, group, port, version):
    with connect(addresses[group], port, minimum_version=version, maximum_version=version) as connection:
        assert connection.version() == version.name.replace("_", ".")


# Servers that clients must not trust


def forge(address: str, days: float = 30, foreign: bool = False) -> str:
    """Key and certificate in one text, signed by the deployment's own authority, or by a foreign one of its name."""
    authority = x509.load_pem_x509_certificate((TLS / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((TLS / "ca.key").read_bytes(), None)
    if foreign:
        signer = ec.generate_private_key(ec.SECP256R1())
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=40))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode() + made.public_bytes(serialization.Encoding.PEM).decode()


# What is wrong with a server, and how it is forged. The first is right, so that the others fail for what they are.
SERVERS = {
    "right": {},
    "expired": {"days": -1},
    "foreign authority": {"foreign": True},
    "other name": {"address": "192.0.2.1"},
}
REASONS = {
    "expired": "certificate has expired",
    "foreign authority": "signature failure|unable to get local issuer certificate|self-signed",
    "other name": "IP address mismatch",
}


@pytest.fixture(scope="module")
def fakes(addresses, root_shell) -> Iterator[None]:
    """Real servers with such certificates: further processes of Redis, further ports of RabbitMQ."""

    def shell(group: str, script: str, stdin: str = "") -> None:
        done = root_shell(addresses[group], script, stdin)
        assert done.returncode == 0, done.stderr + done.stdout

    def listener(port: int, options: str) -> None:
        call = f'rabbit_networking:start_ssl_listener({{"{addresses["rabbitmq"]}", {port}}}, {options}, 2).'
        shell("rabbitmq", f"rabbitmqctl --quiet eval {shlex.quote(call)}")

    files = "/var/lib/rabbitmq/forged"
    try:
        for number, wrong in enumerate(SERVERS.values()):
            redis, results = (forge(**{"address": addresses[group], **wrong}) for group in ("redis", "rabbitmq"))
            name, port = f"forged-{number}", FAKE_REDIS + number
            shell("redis", f"umask 077; cat > /run/{name}.pem", redis)
            shell(
                "redis",
                f"systemd-run --quiet --collect --unit={name} redis-server --bind {addresses['redis']} --port 0 "
                f"--tls-port {port} --tls-cert-file /run/{name}.pem --tls-key-file /run/{name}.pem "
                "--tls-ca-cert-file /etc/redis/tls/ca.pem --tls-auth-clients no "
                f"--requirepass {FAKE_PASSWORD} --save '' --dir /run",
            )
            shell("rabbitmq", f"install -d -m 0700 -o rabbitmq {files}; cat > {files}/{number}.pem", results)
            shell("rabbitmq", f"chmod 0640 {files}/*.pem; chgrp rabbitmq {files}/*.pem")
            pair = f'{{certfile,"{files}/{number}.pem"}},{{keyfile,"{files}/{number}.pem"}}'
            listener(FAKE_AMQP + number, f"[{pair},{{verify,verify_none}}]")
        server = '{certfile,"/etc/rabbitmq/tls/server.pem"},{keyfile,"/etc/rabbitmq/tls/server.pem"}'
        trust = '{cacertfile,"/etc/rabbitmq/tls/ca.pem"},{verify,verify_peer},{fail_if_no_peer_cert,true}'
        listener(MUTUAL_AMQP, f"[{server},{trust}]")
        yield
    finally:
        root_shell(addresses["redis"], "systemctl stop 'forged-*'; rm -f /run/forged-*.pem")
        ports = [*range(FAKE_AMQP, FAKE_AMQP + len(SERVERS)), MUTUAL_AMQP]
        stop = f'[catch rabbit_networking:stop_tcp_listener({{"{addresses["rabbitmq"]}", P}}) || P <- {ports}].'
        root_shell(addresses["rabbitmq"], f"rabbitmqctl --quiet eval {shlex.quote(stop)}; rm -rf {files}")


# As the workers connect: their Python, their settings, their options of the URL.
CLIENT = """
import json, os, sys
os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"] = sys.stdin.readline().split()
os.environ["CELERY_CONFIG_MODULE"] = "celeryconfig"
sys.path.insert(0, "/etc/celery")
from payments import app

def broker():
    with app.connection_for_write() as connection:
        connection.channel().client.ping()

def results():
    app.backend.get_task_meta("11111111-1111-1111-1111-111111111111")

told = {}
for name, probe in (("broker", broker), ("results", results)):
    try:
        probe()
        told[name] = ""
    except Exception as exc:
        told[name] = f"{type(exc).__name__}: {exc}"
print(json.dumps(told))
"""


@pytest.mark.parametrize("server", SERVERS)
def test_workers_refuse_a_server_that_is_not_the_right_one(fakes, addresses, root_shell, urls, server):
    number = list(SERVERS).index(server)
    broker = urls["broker"].replace(f":{REDIS}/", f":{FAKE_REDIS + number}/")
    broker = f"rediss://:{FAKE_PASSWORD}@{broker.rpartition('@')[2]}"
    results = urls["results"].replace(f":{AMQP}/", f":{FAKE_AMQP + number}/")
    script = "exec /opt/celery/venv/bin/python -c 'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
    done = root_shell(addresses["worker"], script, f"{len(CLIENT)}\n{CLIENT}{broker} {results}\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if server == "right":
        assert told == {"broker": "", "results": ""}
        return
    for name in ("broker", "results"):
        assert "certificate" in told[name].lower(), told
        assert any(reason in told[name] for reason in REASONS[server].split("|")), told


# Clients that servers want to know


def test_redis_can_ask_for_a_certificate(addresses, secrets, root_shell):
    def switch(value: str) -> None:
        cli = "redis-cli -p 6380 --tls --cacert /etc/redis/tls/ca.pem --cert {0} --key {0}".format(
            "/etc/redis/tls/server.pem"
        )
        script = f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; {cli} --user admin config set tls-auth-clients {value}"
        done = root_shell(addresses["redis"], script, f"{secrets['redis_admin']}\n")
        assert done.stdout.strip().endswith("OK"), done.stdout + done.stderr

    login = ("AUTH", "celery", secrets["redis"])
    switch("yes")
    try:
        # With TLS 1.3 the refusal comes after the handshake of the client, as an alert or as the end of the connection.
        try:
            answer = ask(connect(addresses["redis"], REDIS), login)
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
            answer = ""
        assert answer == ""
        assert ask(connect(addresses["redis"], REDIS, client="worker1"), login) == "+OK"
    finally:
        switch("no")
    assert ask(connect(addresses["redis"], REDIS), login) == "+OK"


def test_rabbitmq_can_ask_for_a_certificate(fakes, addresses, secrets):
    login = (addresses["rabbitmq"], "client", secrets["rabbitmq_client"], "celery", MUTUAL_AMQP)
    with pytest.raises((OSError, amqp.AMQPError)) as refused:
        rabbit(*login)
    assert not isinstance(refused.value, amqp.AccessRefused)
    with rabbit(*login, client="worker1") as connection:
        assert connection.connected

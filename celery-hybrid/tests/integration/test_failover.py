"""Redis behind Sentinel, and with TLS: the primary is replaced or dies, connections break; each task runs once."""

from __future__ import annotations

import json
import secrets
import time
from urllib.parse import urlsplit

import pytest
import redis
from runs import come_back, each_pool, end, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(120)]

FOLDER = "/var/tmp/celery-tests-redis"
FIRST, SECOND, SENTINEL, TLS = 7101, 7102, 7103, 7104
PASSWORD = secrets.token_hex(16)


class Servers:
    """Further servers on the host, each in a systemd unit of its own that leaves nothing behind."""

    def __init__(self, shell, address):
        self.shell = shell
        self.address = address
        self.names = []
        shell(f"rm -rf {FOLDER}; mkdir -p {FOLDER}")

    def start(self, name, settings, *arguments):
        settings = "\n".join((f"dir {FOLDER}", f"bind {self.address}", "protected-mode no", *settings))
        self.shell(f"cat > {FOLDER}/{name}.conf <<'END'\n{settings}\nEND")
        self.names.append(name)
        self.run(name, *arguments)

    def run(self, name, *arguments):
        program = f"redis-server {FOLDER}/{name}.conf {' '.join(arguments)}"
        self.shell(f"systemd-run --quiet --collect --unit=celery-tests-{name} {program}")

    def kill(self, name):
        self.shell(f"systemctl kill -s KILL celery-tests-{name}")

    def client(self, port, **options):
        options = {"password": PASSWORD, "decode_responses": True, **options}
        return redis.Redis(self.address, port, **options)

    def wait_for(self, client):
        def answers():
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

        wait_until(answers, 10)
        return client

    def close(self):
        for name in self.names:
            self.shell(f"systemctl stop celery-tests-{name} || true")
        self.shell(f"rm -rf {FOLDER}")


@pytest.fixture
def servers(shell, broker_url):
    servers = Servers(shell, urlsplit(broker_url).hostname)
    yield servers
    servers.close()


@pytest.fixture
def broker(make_app, worker_class, tmp_path, monkeypatch):
    """Make an application for another broker, and its workers."""

    def made(url, **options):
        monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER", url)
        monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER_OPTIONS", json.dumps(options))
        app = make_app(broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5, **options})
        return app, each_pool(app, worker_class, tmp_path, monkeypatch)

    return made


def data(name, port):
    return (
        *(f"port {port}", f"requirepass {PASSWORD}", f"masterauth {PASSWORD}"),
        *("appendonly yes", "appendfsync always", f"appenddirname {name}", f"dbfilename {name}.rdb"),
        "repl-diskless-sync-delay 0",
    )


def go_through(app, runs, *faults):
    """Go through faults, each with unacknowledged tasks that wait for so many seconds."""
    later = []
    for number, (fault, seconds) in enumerate(faults):
        later += [run.send("letters.work", f"later-{number}", countdown=seconds) for run in runs]
        time.sleep(1)
        fault()
        come_back(runs, number, fault)
    for result in later:
        result.get(timeout=30)
    end(app, runs)


def test_sentinel_replaces_the_primary(servers, broker):
    address = servers.address
    servers.start("first", data("first", FIRST))
    servers.start("second", (*data("second", SECOND), f"replicaof {address} {FIRST}"))
    nodes = {FIRST: "first", SECOND: "second"}
    for port in nodes:
        servers.wait_for(servers.client(port))
    wait_until(lambda: servers.client(FIRST).info("replication").get("slave0", {}).get("state") == "online", 20)
    watch = (
        f"sentinel monitor tests {address} {FIRST} 1",
        f"sentinel auth-pass tests {PASSWORD}",
        *("sentinel down-after-milliseconds tests 1000", "sentinel failover-timeout tests 5000"),
    )
    servers.start("sentinel", (f"port {SENTINEL}", *watch), "--sentinel")
    sentinel = servers.wait_for(servers.client(SENTINEL, password=None))
    wait_until(lambda: sentinel.sentinel_master("tests")["num-slaves"] == 1, 20)

    def primary():
        return int(sentinel.sentinel_get_master_addr_by_name("tests")[1])

    def replicated():
        # What the other one does not have yet is lost with a primary that dies; no client can change that.
        wait_until(lambda: servers.client(primary()).wait(1, 1000) == 1, 30)

    def planned():
        old = primary()
        replicated()
        sentinel.execute_command("SENTINEL", "FAILOVER", "tests")
        # What it is told before it becomes a replica is lost, too.
        wait_until(lambda: servers.client(old).info("replication")["role"] == "slave", 20)

    def killed():
        old = primary()
        replicated()
        servers.kill(nodes[old])
        wait_until(lambda: primary() != old, 20)

    app, workers = broker(f"sentinel://:{PASSWORD}@{address}:{SENTINEL}/0", master_name="tests")
    with workers as runs:
        # A primary that is being replaced forgets what it is told meanwhile, an acknowledgement, too.
        go_through(app, runs, (planned, 25), (killed, 4))


def test_connections_with_tls_break(servers, broker, shell, tmp_path):
    address = servers.address
    shell(
        f"cd {FOLDER}; openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=redis -keyout tls.key -out tls.pem "
        f"-addext subjectAltName=IP:{address} 2>/dev/null"
    )
    (tmp_path / "ca.pem").write_text(shell(f"cat {FOLDER}/tls.pem"))
    encrypted = (
        f"tls-port {TLS}",
        f"tls-cert-file {FOLDER}/tls.pem",
        f"tls-key-file {FOLDER}/tls.key",
        "tls-auth-clients no",
    )
    servers.start("tls", (*data("tls", 0), *encrypted))
    client = servers.wait_for(servers.client(TLS, ssl=True, ssl_ca_certs=str(tmp_path / "ca.pem")))

    def broken():
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def killed():
        servers.kill("tls")
        time.sleep(2)
        servers.run("tls")
        servers.wait_for(client)

    query = f"ssl_cert_reqs=required&ssl_ca_certs={tmp_path / 'ca.pem'}"
    app, workers = broker(f"rediss://:{PASSWORD}@{address}:{TLS}/0?{query}")
    with workers as runs:
        go_through(app, runs, (broken, 4), (killed, 4))

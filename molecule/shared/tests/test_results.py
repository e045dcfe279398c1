"""RabbitMQ as the result store."""

from __future__ import annotations

import json

import pytest

from stack import wait_until

testinfra_hosts = ["ansible://rabbitmq"]
STREAMS = [f"celery.results.{n}" for n in range(16)]


@pytest.fixture
def api(root_shell, address, secrets):
    """Read the management API as the administrator."""

    program = (
        "import base64, sys, urllib.request\n"
        "path, user = sys.stdin.read().split()\n"
        "request = urllib.request.Request('http://127.0.0.1:15672/api/' + path)\n"
        "request.add_header('Authorization', 'Basic ' + base64.b64encode(user.encode()).decode())\n"
        "print(urllib.request.urlopen(request, timeout=10).read().decode())"
    )

    def get(path):
        answer = root_shell(address, f'python3 -c "{program}"', f"{path} admin:{secrets['rabbitmq_admin']}\n")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return get


def test_service_is_enabled_and_runs(host):
    service = host.service("rabbitmq-server")
    assert service.is_enabled
    assert wait_until(lambda: service.is_running)


def test_listens_only_where_declared(host, address):
    wait_until(lambda: ":15672 " in host.check_output("ss -Hltn"))
    listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    own = {socket for socket in listening if socket.rsplit(":", 1)[1] in ("4369", "5671", "5672", "15672", "25672")}
    loopback = {"127.0.0.1:4369", "127.0.0.1:5671", "127.0.0.1:15672", "127.0.0.1:25672"}
    assert own == {*loopback, f"{address}:5671"}
    # Nothing else of RabbitMQ listens to the network.
    foreign = {socket for socket in listening if not socket.startswith(("127.", "[::1]"))}
    assert {socket.rsplit(":", 1)[1] for socket in foreign} == {"22", "5671"}


def test_cookie_is_private(host):
    cookie = host.file("/var/lib/rabbitmq/.erlang.cookie")
    assert (cookie.user, cookie.group, cookie.mode) == ("rabbitmq", "rabbitmq", 0o400)
    assert len(cookie.content_string) >= 20


def test_keys_are_private(host):
    files = host.check_output("find /etc/rabbitmq/tls -type f -printf '%f %U:%g %m\\n'").splitlines()
    assert sorted(files) == ["ca.pem 0:rabbitmq 640", "server.pem 0:rabbitmq 640"]


def test_only_declared_users_and_no_guest(api):
    users = {user["name"]: user["tags"] for user in api("users")}
    assert users == {
        "admin": ["administrator"],
        "client": [],
        "letters": [],
        "monitoring": ["monitoring"],
        "worker": [],
    }


def test_streams_are_durable_and_bound(api):
    queues = {queue["name"]: queue for queue in api("queues/celery")}
    assert [name for name in STREAMS if name not in queues] == []
    for name in STREAMS:
        assert (queues[name]["type"], queues[name]["durable"]) == ("stream", True)
    bound = {
        (binding["destination"], binding["routing_key"])
        for binding in api("exchanges/celery/celery.results/bindings/source")
        if binding["destination"] in STREAMS
    }
    assert bound == {(name, name) for name in STREAMS}


def test_exchanges_are_durable(api):
    exchanges = {exchange["name"]: exchange for exchange in api("exchanges/celery")}
    assert (exchanges["celery.results"]["type"], exchanges["celery.results"]["durable"]) == ("direct", True)
    assert (exchanges["celery.dlx"]["type"], exchanges["celery.dlx"]["durable"]) == ("topic", True)


def test_dead_letters_have_a_durable_bounded_home(api):
    queue = api("queues/celery/celery.dead_letters")
    assert (queue["type"], queue["durable"], queue["policy"]) == ("quorum", True, "celery.dead_letters")
    assert any(
        binding["source"] == "celery.dlx" and binding["routing_key"] == "#"
        for binding in api("queues/celery/celery.dead_letters/bindings")
    )


def test_chords_are_not_counted_in_rabbitmq(api):
    assert "celery.chords" not in {queue["name"] for queue in api("queues/celery")}


def test_results_expire_by_policy(api):
    policies = {policy["name"]: policy for policy in api("policies/celery")}
    assert policies["celery.results"]["definition"]["max-age"] == "86400s"


@pytest.mark.parametrize("user", ["worker", "client"])
def test_least_rights(api, user):
    (rights,) = api(f"users/{user}/permissions")
    assert rights["vhost"] == "celery"
    configure = {"worker": r"^celery\.(reply\..*|journal\.replayed)$", "client": r"^celery\.reply\..*$"}
    assert rights["configure"] == configure[user]
    # A client only sends the results that it refuses.
    assert ("dlx" in rights["write"]) == (user == "worker")
    assert ("chords" in rights["read"]) == ("journal" in rights["read"]) == (user == "worker")
    assert "dead_letters" not in rights["read"] + rights["write"]


def test_log_has_no_error(host):
    log = host.run("journalctl -b -u rabbitmq-server; cat /var/log/rabbitmq/rabbit*.log").stdout
    errors = [line for line in log.splitlines() if "[error]" in line or "[critical]" in line]
    # On purpose: wrong logins, rights that nobody has, a port of a test (test_refusals, test_access), and RabbitMQ
    # stopped and started under the workers' connections (test_tasks): 3.10 calls it an error that they were there, and
    # that they are back before its streams. Each is two lines of one Erlang process.
    doors = ("login refused", "refused for user", "vhost other not found", "vhost  not found", ":5690 ")
    # And celery_verify's question whether there are more streams than there should be: 4.0 logs the answer.
    # A client that only opens the port may be gone before RabbitMQ has set up its end: einval, enotconn.
    # A channel that a client leaves may be gone when its supervisor comes to end it: shutdown_error.
    excused = (
        *doors,
        "einval (",
        "enotconn (",
        "errorContext: shutdown_error",
        "with reason 'shutdown'",
        "is down or inaccessible",
        "no queue 'celery.results.16'",
    )
    processes = {process_of(line) for line in errors if any(words in line for words in excused)}
    unexplained = [line for line in errors if process_of(line) not in processes]
    assert not unexplained, "\n".join(unexplained)


def process_of(line):
    return line.partition("<")[2].partition(">")[0]

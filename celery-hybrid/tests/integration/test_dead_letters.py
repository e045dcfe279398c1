"""Bad tasks are dead-lettered, each once and as it was; people list, replay and discard them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import amqp
import pytest
from click.testing import CliRunner

from celery_hybrid.dead_letters.letter import DeadLetter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

HERE = Path(__file__).parent
QUEUE = "celery.dead_letters"


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def letters_url(shell, results_url):
    """URL of a user with the rights of a user who handles dead letters."""
    name = f"letters-{uuid.uuid4().hex[:8]}"
    shell.ctl(f"add_user {name} {name}")
    shell.ctl(f"set_permissions -p {shell.vhost} {name} '^$' '^celery[.]dlx$' '^celery[.]dead_letters$'")
    parts = urlsplit(results_url)
    yield urlunsplit(parts._replace(netloc=f"{name}:{name}@{parts.netloc.rpartition('@')[2]}"))
    shell.ctl(f"delete_user {name}")


def put(box, letter):
    """Publish a letter, as a worker does."""
    record = letter.to_record()
    before = box.count()
    box.channel.basic_publish(record.to_message(), record.exchange, record.subject)
    wait_until(lambda: box.count() == before + 1)


class Box:
    """The queue of dead letters."""

    def __init__(self, url):
        self.url = url
        parts = urlsplit(url)
        self.connection = amqp.Connection(
            host=f"{parts.hostname}:{parts.port}",
            userid=parts.username,
            password=parts.password,
            virtual_host=parts.path[1:],
        )
        self.connection.connect()
        self.channel = self.connection.channel()

    def take(self, seconds=20):
        """Take the next letter of a task out."""
        message = wait_until(lambda: self.channel.basic_get(QUEUE, no_ack=True), seconds)
        return DeadLetter.from_body(message.body)

    def take_all(self):
        while self.channel.basic_get(QUEUE, no_ack=True):
            pass

    def count(self):
        return self.channel.queue_declare(QUEUE, passive=True).message_count


@pytest.fixture(scope="module")
def box(letters_url, shell):
    shell.ctl(f"purge_queue -p {shell.vhost} {QUEUE}")
    box = Box(letters_url)
    yield box
    # RabbitMQ was stopped meanwhile: nobody would answer a good-bye.
    box.connection.collect()


@pytest.fixture(scope="module")
def app(results_url, broker_url):
    from dead_letter_tasks import app

    yield app
    from celery_hybrid.results.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


@pytest.fixture(scope="module")
def keeping_worker(app, worker_class, tmp_path_factory):
    worker = worker_class("prefork", tmp_path_factory.mktemp("keeping") / "log", "-c", "2", app="dead_letter_tasks")
    worker.wait_ready()
    yield worker
    worker.stop()


@pytest.fixture
def empty(box):
    """No letter may be there that a test does not expect."""
    assert box.count() == 0
    yield
    assert box.count() == 0


def redis_of(app):
    return app.connection_for_write().default_channel.client


def publish(app, body, headers, **properties):
    """Put a message into the queue as it is."""
    with app.connection_for_write() as connection:
        queue = app.conf.task_default_queue
        connection.Producer(auto_declare=False).publish(
            body, exchange="", routing_key=queue, headers=headers, **properties
        )


def send(app, body, content_type="application/json", **headers):
    headers = {"id": str(uuid.uuid4()), "task": "letters.work", **headers}
    publish(app, body, headers, content_type=content_type, content_encoding="utf-8")
    return headers["id"]


def settled(app):
    """Return whether Redis has no unacknowledged message any more."""
    return redis_of(app).hlen("unacked") == 0


GOOD = b'[["/dev/null"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


@pytest.mark.usefixtures("keeping_worker", "empty")
class TestReasons:
    """Each way for a task to end badly."""

    def letter(self, app, box, task_id, reason):
        letter = box.take()
        assert (letter.task_id, letter.reason) == (task_id, reason)
        assert letter.queue == app.conf.task_default_queue
        assert letter.host
        assert letter.worker.startswith("prefork-")
        assert letter.received <= letter.failed
        wait_until(lambda: settled(app))
        return letter

    def test_failed(self, app, box):
        sent = app.tasks["letters.fail"].delay("a", go="b")
        with pytest.raises(ValueError, match="no good"):
            sent.get(timeout=20)
        letter = self.letter(app, box, sent.id, "failed")
        assert letter.exception == "ValueError: no good"
        assert "in fail\n" in letter.traceback
        assert json.loads(letter.body)[:2] == [["a"], {"go": "b"}]
        assert letter.content_type == "application/json"
        assert letter.headers["task"] == "letters.fail"
        assert letter.properties["correlation_id"] == sent.id
        assert letter.id == f"{sent.id}:0.0.0:failed"

    def test_retries_used_up(self, app, box, tmp_path):
        sent = app.tasks["letters.retry"].delay(str(tmp_path / "ran"))
        letter = self.letter(app, box, sent.id, "failed")
        assert letter.retries == 1
        assert (tmp_path / "ran").read_text() == "ran\n" * 2

    @pytest.mark.parametrize("kind", ["key", "index"])
    def test_expected_is_none(self, app, kind):
        sent = app.tasks["letters.expected"].delay(kind)
        with pytest.raises(LookupError):
            sent.get(timeout=20)

    def test_rejected(self, app, box):
        sent = app.tasks["letters.reject"].delay()
        assert "not mine" in self.letter(app, box, sent.id, "rejected").exception

    def test_undecodable(self, app, box):
        task_id = send(app, b"[[1,")
        assert self.letter(app, box, task_id, "undecodable").body == b"[[1,"

    def test_a_pickle_is_refused(self, app, box, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'exploded'}",)

        bomb = pickle.dumps([[Bomb()], {}, {}])
        task_id = send(app, bomb, "application/x-python-serialize")
        assert self.letter(app, box, task_id, "refused").body == bomb
        assert not (tmp_path / "exploded").exists()

    def test_unknown(self, app, box):
        task_id = send(app, GOOD, task="letters.nobody")
        assert self.letter(app, box, task_id, "unknown").body == GOOD

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (b'{"no": "task"}', {}),
            (b"[]", {}),
            (b'[{}, [], "x"]', {}),
            (GOOD, {"timelimit": "soon"}),
            (GOOD, {"retries": "many"}),
            (GOOD, {"stamped_headers": [{}]}),
        ],
    )
    def test_malformed(self, app, box, keeping_worker, body, headers):
        task_id = send(app, body, **headers)
        letter = self.letter(app, box, task_id, "malformed")
        assert letter.body == body
        assert letter.headers | headers == letter.headers
        assert keeping_worker.process.poll() is None

    @pytest.mark.parametrize("headers", [{"id": None}, {"task": ["letters.work"]}, {"id": {}, "task": {}}])
    def test_malformed_without_id(self, app, box, headers):
        send(app, GOOD, **headers)
        assert box.take().reason == "malformed"

    def test_no_task_at_all(self, app, box):
        publish(app, b'{"hello": "world"}', {}, content_type="application/json", content_encoding="utf-8")
        assert box.take().reason == "malformed"

    @pytest.mark.skipif("CELERY_HYBRID_TEST_STOCK" in os.environ, reason="kombu's transport loses it")
    @pytest.mark.parametrize("element", [b"\xff garbage", b"{}", b'{"body": "%", "properties": {}}'])
    def test_no_message_at_all(self, app, box, keeping_worker, element):
        redis_of(app).lpush(app.conf.task_default_queue, element)
        letter = box.take()
        assert (letter.reason, letter.body, letter.queue) == ("undecodable", element, app.conf.task_default_queue)
        assert keeping_worker.process.poll() is None

    @pytest.mark.parametrize("eta", ["tomorrow", "9999-12-31T23:59:59-12:00", 5])
    def test_eta(self, app, box, eta):
        task_id = send(app, GOOD, eta=eta)
        assert self.letter(app, box, task_id, "eta").headers["eta"] == eta

    @pytest.mark.parametrize(("task", "reason"), [("die", "lost"), ("eat", "lost"), ("hang", "time_limit")])
    def test_ends_for_good_after_one_more_try(self, app, box, tmp_path, task, reason):
        sent = app.tasks[f"letters.{task}"].delay(str(tmp_path / "ran"))
        letter = self.letter(app, box, sent.id, reason)
        assert (tmp_path / "ran").read_text() == "ran\n" * 2
        assert letter.headers["x-lost"] == 1
        wait_until(lambda: sent.state == "FAILURE")

    def test_unroutable(self, app, box):
        queue = f"{app.conf.task_default_queue}.undeliverable"
        with app.connection_for_write() as connection:
            connection.Producer(auto_declare=False).publish(
                GOOD,
                exchange="nowhere",
                routing_key="nobody",
                headers={"id": "lost-way", "task": "letters.work"},
                content_type="application/json",
                content_encoding="utf-8",
            )
        letter = box.take()
        assert (letter.reason, letter.routing_key, letter.task_id) == ("unroutable", "nobody", "lost-way")
        assert redis_of(app).llen(queue) == 0


@pytest.fixture
def tool(app, letters_url, tmp_path):
    """Run ``celery dead-letters``: in this process, or in one of its own that something is done to before."""
    from celery.bin.celery import celery

    def run(*arguments, code=0, before=""):
        if not before:
            environment = {"CELERY_DEAD_LETTERS_URL": letters_url}
            result = CliRunner().invoke(
                celery, ["-A", "dead_letter_tasks", "dead-letters", *arguments], env=environment
            )
            assert result.exit_code == code, result.output
            return result.output
        start = f"import sys; {before}\nfrom celery.bin.celery import main\nsys.argv[0] = 'celery'\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", start, "-A", "dead_letter_tasks", "dead-letters", *arguments],
            cwd=HERE,
            env={**os.environ, "CELERY_DEAD_LETTERS_URL": letters_url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


KILLED = (
    "import os; from celery_hybrid.dead_letters.cli import DeadLetterQueue as Q;"
    "Q.remove = lambda *_: os.kill(os.getpid(), 9);"
)


@pytest.mark.usefixtures("keeping_worker", "empty")
class TestTools:
    """What people do with dead letters."""

    @pytest.fixture(autouse=True)
    def none_left(self, box, empty):
        yield
        box.take_all()

    @pytest.fixture
    def failed(self, app, box, tmp_path):
        """A task that failed, because a file was missing that is there now."""
        go = tmp_path / "go"
        sent = app.tasks["letters.fail"].delay("x", go=str(go))
        wait_until(box.count)
        assert app.AsyncResult(sent.id).state == "FAILURE"
        go.touch()
        return sent

    def test_list_and_show(self, app, box, failed, tool):
        send(app, GOOD, task="letters.nobody")
        wait_until(lambda: box.count() == 2)
        text = tool("list")
        assert "1 failed, 1 unknown" in text
        assert "ValueError: no good" in text
        assert "1 unknown" in tool("list", "--task", "letters.nob*", "--newer", "1h")
        assert "No dead letters." in tool("list", "--older", "1h")
        (line,) = tool("list", "--reason", "failed", "--json").splitlines()
        assert json.loads(line)["task_id"] == failed.id
        text = tool("show", failed.id)
        assert "Traceback" in text
        assert "body: [[" in text
        wait_until(lambda: box.count() == 2)
        assert "There is no dead letter nobody." in tool("show", "nobody", code=1)

    def test_a_look_drops_nothing(self, box, failed, tool):
        # Each counts as a delivery, of which RabbitMQ 4.0 allows 20 unless the policy says more.
        for _ in range(25):
            wait_until(lambda: box.count() == 1)  # the one who looked before has gone
            assert "1 failed" in tool("list")
        wait_until(lambda: box.count() == 1)

    def test_as_another_user_than_the_workers(self, failed, letters_url, results_url):
        from celery.bin.celery import celery

        arguments = ["-A", "dead_letter_tasks", "dead-letters"]
        user = urlsplit(letters_url)
        seen = CliRunner().invoke(celery, [*arguments, "--user", user.username, "list"], input=f"{user.password}\n")
        assert "1 failed" in seen.output
        refused = CliRunner().invoke(celery, [*arguments, "list"])
        assert refused.exit_code == 1
        assert "needs a user who may read" in refused.output

    def test_replay(self, app, box, failed, tool):
        text = tool("replay", failed.id)
        assert "would send letters.fail" in text
        wait_until(lambda: box.count() == 1)
        assert f"sent letters.fail[{failed.id}]" in tool("replay", failed.id, "--execute")
        wait_until(lambda: app.backend.store.archive.result(failed.id).status == "SUCCESS")
        assert app.AsyncResult(failed.id).result == "well"
        assert box.count() == 0

    def test_replay_with_a_new_id(self, app, box, failed, tool):
        text = tool("replay", failed.id, "--execute", "--new-id", "--queue", app.conf.task_default_queue)
        new = text.partition("sent letters.fail[")[2].partition("]")[0]
        assert new != failed.id
        assert app.AsyncResult(new).get(timeout=20) == "well"
        assert app.AsyncResult(failed.id).state == "FAILURE"

    def test_replayed_and_failed_again(self, app, box, tool):
        sent = app.tasks["letters.fail"].delay()
        wait_until(box.count)
        tool("replay", sent.id, "--execute")
        letter = box.take()
        assert (letter.task_id, letter.replays, letter.headers["x-replays"]) == (sent.id, 1, 1)
        assert letter.id == f"{sent.id}:0.0.1:failed"

    def test_killed_behind_the_first_step(self, app, box, failed, tool):
        tool("replay", failed.id, "--execute", before=KILLED, code=-9)
        wait_until(lambda: app.backend.store.archive.result(failed.id).status == "SUCCESS")
        wait_until(box.count)
        # It ran, and its letter is still there: noticed, and removed.
        assert "a copy of one that was replayed at" in tool("replay", "--execute")
        assert box.count() == 0

    def test_a_letter_that_a_crash_of_the_worker_has_left_twice(self, app, box, failed, tool):
        """Killed between the letter and the acknowledgement: the task comes again, and fails again."""
        letter = box.take()
        for at in ("2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:07.000+00:00"):
            put(box, replace(letter, failed=at))
        assert "1 replayed, 1 removed as copies" in tool("replay", "--execute")
        wait_until(lambda: app.backend.store.archive.result(failed.id).status == "SUCCESS")
        assert box.count() == 0

    def test_an_id_that_was_used_again_is_another_letter(self, box, failed, tool, tmp_path):
        letter = box.take()
        other = replace(letter, properties={**letter.properties, "delivery_tag": str(uuid.uuid4())})
        put(box, letter)
        assert "1 replayed" in tool("replay", "--execute")
        put(box, other)
        assert "1 replayed" in tool("replay", "--execute")
        for each in (letter, replace(other, exception="another")):
            put(box, each)
        tool("discard", "--to", str(tmp_path / "letters"), "--execute")
        assert len((tmp_path / "letters").read_text().splitlines()) == 2

    def test_a_malformed_or_forged_letter_is_shown_and_harms_neither_list_nor_terminal(self, box, failed, tool, shell):
        evil = "\x1b]0;pwned\x07\x9b31m\u202e\r\nforged  line"
        good = json.loads(box.take().to_record().body)
        bodies = [
            {"failed": 5},
            {"task": None},
            {"retries": "x"},
            {"headers": []},
            {"body": 7},
            {"body_encoding": "base64"},
        ]
        forged = dict.fromkeys(("id", "task", "queue", "exception", "traceback", "worker"), evil)
        for change in [{}, *bodies, {"failed": "2026-01-01"}, forged]:
            box.channel.basic_publish(amqp.Message(json.dumps(good | change).encode()), "celery.dlx", "task.failed")
        for headers in ({"x-death": [5]}, {"x-death": []}, {"x-death": [{"reason": evil}]}):
            odd = amqp.Message(b"[" * 100_000, message_id=evil, timestamp=2**62, application_headers=headers)
            box.channel.basic_publish(odd, "celery.dlx", evil)
        box.channel.basic_publish(amqp.Message(json.dumps(good).encode()), "celery.dlx", "result.refused")

        def look(*command):
            wait_until(lambda: box.count() == 13)  # the one who looked before has gone
            return tool(*command)

        for command in (["list"], ["list", "--older", "1h"], ["show", failed.id], ["show", evil], ["replay"]):
            text = look(*command)
            assert "\nforged" not in text
            assert all(each == "\n" or each.isprintable() for each in text)
        assert "3 failed" in look("list")
        # What only looks like a worker's is not replayed.
        assert "3 would be replayed" in look("replay")
        assert len(look("list", "--json").splitlines()) == 13

    def test_discard_and_put_back(self, app, box, failed, tool, tmp_path):
        path = tmp_path / "letters"
        assert "would move" in tool("discard", "--to", str(path))
        assert not path.exists()
        tool("discard", "--to", str(path), "--execute", before=KILLED, code=-9)
        wait_until(box.count)
        with path.open("a") as file:
            file.write('{"id": "begun')
        assert "1 dead letter moved to" in tool("discard", "--to", str(path), "--execute")
        assert box.count() == 0
        assert len(path.read_text().splitlines()) == 1
        assert path.stat().st_mode & 0o777 == 0o600
        assert "would put 1 dead letter back; 0 are already there" in tool("put-back", str(path))
        assert box.count() == 0
        assert "1 dead letter put back, 0 were already there" in tool("put-back", str(path), "--execute")
        assert "0 dead letters put back, 1 were already there" in tool("put-back", str(path), "--execute")
        tool("replay", "--execute")
        wait_until(lambda: app.backend.store.archive.result(failed.id).status == "SUCCESS")
        tool("put-back", str(path), "--execute")
        # From the file once more: it was replayed.
        assert "was already replayed at" in tool("replay", "--execute", code=1)


def test_rabbitmq_is_away(app, box, keeping_worker, shell, tmp_path):
    """Letters wait on the worker's disk, and come when it is back; the task has left Redis meanwhile."""
    assert box.count() == 0
    shell("systemctl stop rabbitmq-server")
    try:
        sent = [app.tasks["letters.fail"].delay() for _ in range(3)]
        wait_until(lambda: settled(app) and redis_of(app).llen(app.conf.task_default_queue) == 0)
        wait_until(lambda: "Dead letters go to the outbox" in keeping_worker.log.read_text())
    finally:
        shell("systemctl start rabbitmq-server")
        shell.ctl("await_startup")
    again = Box(box.url)
    letters = [again.take(40) for _ in sent]
    assert {letter.task_id for letter in letters} == {each.id for each in sent}
    assert {letter.reason for letter in letters} == {"failed"}
    again.connection.close()


def test_there_is_no_room_for_letters(app, box, worker_class, shell, tmp_path, monkeypatch):
    """What neither RabbitMQ nor the full outbox takes stays in Redis, loudly; it comes when there is room again."""
    monkeypatch.setenv("CELERY_HYBRID_TEST_QUEUE", f"letters-{uuid.uuid4().hex[:8]}")
    monkeypatch.setenv("CELERY_HYBRID_TEST_BROKER_OPTIONS", '{"visibility_timeout": 8}')
    options = {"outbox": str(tmp_path / "outbox"), "outbox_max_records": 2}
    monkeypatch.setenv("CELERY_HYBRID_TEST_OPTIONS", json.dumps(options))
    worker = worker_class("prefork", tmp_path / "log", "-c", "1", app="dead_letter_tasks")
    queue = os.environ["CELERY_HYBRID_TEST_QUEUE"]
    try:
        worker.wait_ready()
        shell("systemctl stop rabbitmq-server")
        try:
            for number in range(5):
                headers = {"id": f"no-room-{number}", "task": "letters.work"}
                with app.connection_for_write() as connection:
                    connection.Producer(auto_declare=False).publish(
                        b"[broken", exchange="", routing_key=queue, headers=headers, content_type="application/json"
                    )
            wait_until(lambda: worker.log.read_text().count("it stays in Redis") >= 3)
            assert redis_of(app).llen(queue) == 0
            assert redis_of(app).hlen("unacked") == 3
        finally:
            shell("systemctl start rabbitmq-server")
            shell.ctl("await_startup")
        again = Box(box.url)
        assert {again.take(40).task_id for _ in range(5)} == {f"no-room-{number}" for number in range(5)}
        again.connection.close()
        wait_until(lambda: settled(app))
        app.send_task("letters.work", (str(tmp_path / "ran"),), queue=queue)
        wait_until((tmp_path / "ran").exists)
    finally:
        worker.stop()

"""The verifier against a live worker: the good case, and what it exists to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from urllib.parse import urlsplit

import pytest
import redis
from environment import needed

PARTITIONS = int(os.environ.get("CELERY_HYBRID_TEST_PARTITIONS", "16"))

CONFIGURATION = """
import os
task_serializer = result_serializer = "json"
accept_content = result_accept_content = ["json"]
timezone = "UTC"
enable_utc = True
task_acks_late = True
worker_prefetch_multiplier = 1
result_expires = 86400
result_extended = True
broker_pool_limit = 10
task_time_limit = 300
broker_transport_options = {"visibility_timeout": 600, "queue_order_strategy": "priority"}
broker_connection_retry_on_startup = True
"""
APPLICATION = "from celery import Celery\napp = Celery('verified')\n"


def facts():
    def queue(name, kind, policy, **arguments):
        return {
            "name": name,
            "durable": True,
            "auto_delete": False,
            "arguments": {"x-queue-type": kind, **arguments},
            "effective_policy_definition": policy,
        }

    def exchange(name, kind):
        return {"name": name, "type": kind, "durable": True, "auto_delete": False, "internal": False}

    def binding(source, name, key):
        return {"source": source, "destination": name, "destination_type": "queue", "routing_key": key}

    streams = [f"celery.results.{n}" for n in range(PARTITIONS)]
    return {
        "host": "results1",
        "exchanges": [exchange("celery.results", "direct"), exchange("celery.dlx", "topic")],
        "queues": [queue("celery.dead_letters", "quorum", {"delivery-limit": 2147483647})]
        + [queue(name, "stream", {"max-age": "86400s"}) for name in streams],
        "bindings": [binding("celery.dlx", "celery.dead_letters", "#")]
        + [binding("celery.results", name, name) for name in streams],
        "policies": [],
        "nodes": [{"name": "rabbit@results1", "fd_total": 1000}],
    }


class Deployment:
    """A configuration, an application, workers, and the verifier run as the module runs it."""

    def __init__(self, directory):
        self.broker = needed("CELERY_HYBRID_TEST_BROKER")
        self.results = needed("CELERY_HYBRID_TEST_RESULTS")
        self.directory = directory
        self.name = f"verified_{uuid.uuid4().hex[:8]}"
        self.queue = f"test.{self.name}"
        self.node = f"{self.name}@test"
        self.workers = []
        self.write()
        (directory / f"{self.name}_app.py").write_text(APPLICATION)

    def write(self, more=""):
        options = f"result_backend_transport_options = {{'partitions': {PARTITIONS}}}\n"
        queue = f"task_default_queue = {self.queue!r}\n"
        (self.directory / f"{self.name}_config.py").write_text(CONFIGURATION + options + queue + more)

    def environment(self, results):
        return {
            **os.environ,
            "CELERY_BROKER_URL": self.broker,
            "CELERY_RESULT_BACKEND": results or self.results,
            "CELERY_CONFIG_MODULE": f"{self.name}_config",
            "PYTHONPATH": os.pathsep.join([str(self.directory), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "C_FORCE_ROOT": "1",
        }

    def start(self, results=None):
        log = (self.directory / "worker.log").open("wb")
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", f"{self.name}_app", "worker"),
                *("-n", self.node, "-P", "solo", "-l", "INFO", "--without-mingle", "--without-gossip"),
            ],
            env=self.environment(results),
            stdout=log,
            stderr=log,
        )
        self.workers.append(worker)
        deadline = time.monotonic() + 30
        while b" ready." not in (self.directory / "worker.log").read_bytes():
            if worker.poll() is not None or time.monotonic() > deadline:
                pytest.fail((self.directory / "worker.log").read_text()[-2000:])
            time.sleep(0.1)

    def verify(self, results=None, **request):
        request = {
            "app": f"{self.name}_app",
            "config_module": f"{self.name}_config",
            "python_path": [str(self.directory)],
            "nodes": [self.node],
            "broker_facts": {
                "maxmemory_policy": "noeviction",
                "host": "broker1",
                "maxclients": "1000",
                "connected_clients": "10",
            },
            "results_facts": facts(),
            "canary_timeout": 5,
            **request,
        }
        ended = subprocess.run(
            [sys.executable, "-m", "celery_hybrid.verify", "--request", "-"],
            input=json.dumps(request),
            env=self.environment(results),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert ended.returncode in (0, 1), ended.stderr
        for url in (self.broker, self.results):
            assert str(urlsplit(url).password) not in ended.stdout + ended.stderr
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        self.skipped = lines[-1]["skipped"]
        return {line["check"]["name"].partition("[")[0]: line["check"] for line in lines[:-1]}

    def redis_keys(self):
        client = redis.Redis.from_url(self.broker)
        keys = {key.decode() for key in client.scan_iter("*")}
        # Chords of other tests end meanwhile, and so do leases of workers that have ended; the verifier has neither.
        return {key for key in keys if not key.startswith(("celery.chord", "celery.watcher."))}

    def close(self):
        for worker in self.workers:
            worker.terminate()
            worker.wait(20)
        client = redis.Redis.from_url(self.broker)
        for key in client.scan_iter(f"*{self.queue}*"):
            client.delete(key)


@pytest.fixture
def deployment(tmp_path):
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


def failed(found):
    return {name: check["actual"] for name, check in found.items() if not check["ok"]}


def test_a_good_deployment_passes_every_check_and_keeps_nothing_in_redis(deployment):
    deployment.start()
    before = deployment.redis_keys()
    found = deployment.verify()
    assert failed(found) == {}
    assert deployment.redis_keys() == before
    assert f"SUCCESS by {deployment.node}" in found["canary.roundtrip"]["actual"]
    assert "back through RabbitMQ after" in found["canary.roundtrip"]["actual"]
    assert "application/json, in a stream" in found["canary.archive"]["actual"]


@pytest.mark.parametrize("scheme", ["rpc", "redis"])
def test_results_that_do_not_go_to_rabbitmq_are_found(deployment, scheme):
    results = "rpc://" if scheme == "rpc" else deployment.broker
    deployment.start(results)
    found = failed(deployment.verify(results))
    assert f"celery.backends.{scheme}" in found["settings.result_backend"]
    assert "canary.archive" in found
    assert f"result_backend begins with {scheme}://" in found["results.reachable"]


@pytest.mark.parametrize("scheme", ["rpc", "redis"])
def test_a_worker_that_was_not_restarted_is_found(deployment, scheme):
    deployment.start("rpc://" if scheme == "rpc" else deployment.broker)
    found = failed(deployment.verify())
    assert f"{deployment.node}: result_backend is {scheme}://" in found["settings.workers"]
    # Without the rights to store in Redis, a worker may give the task back.
    assert found["canary.roundtrip"].startswith(("a worker took the task, but no result", "no worker took the task"))
    assert "received no record of task" in found["canary.archive"]


def test_a_worker_with_another_serializer_is_found(deployment):
    deployment.write("result_serializer = 'pickle'\nresult_accept_content = ['json', 'pickle']\n")
    deployment.start()
    deployment.write()
    found = failed(deployment.verify())
    assert f"{deployment.node}: result_serializer is pickle, the file says json" in found["settings.workers"]
    assert "content type is application/x-python-serialize" in found["canary.archive"]


@pytest.fixture
def letters(shell):
    """A user with the rights to handle dead letters."""
    name = f"letters-{uuid.uuid4().hex[:8]}"
    shell.ctl(f"add_user {name} {name}")
    shell.ctl(f"set_permissions -p {shell.vhost} {name} '^$' '^celery[.]dlx$' '^celery[.]dead_letters$'")
    yield {"user": name, "password": name}
    shell.ctl(f"delete_user {name}")


CONSUMER = "worker_consumer = 'celery_hybrid.worker.consumer:Consumer'\n"


def test_a_pickled_task_is_refused_and_its_dead_letter_removed(deployment, letters, shell):
    def count():
        return int(
            shell.ctl(f"list_queues -p {shell.vhost} --no-table-headers name messages | grep dead_letters").split()[1]
        )

    deployment.write(CONSUMER)
    deployment.start(needed("CELERY_HYBRID_TEST_WORKER"))
    before = count()
    found = deployment.verify(needed("CELERY_HYBRID_TEST_WORKER"), letters=letters)
    assert failed(found) == {}
    assert "refused, and among the dead letters after" in found["canary.refused"]["actual"]
    assert deployment.skipped == {}
    assert count() == before


def test_a_worker_that_accepts_pickle_is_found_by_a_pickled_task(deployment, letters):
    deployment.write(CONSUMER + "accept_content = ['json', 'pickle']\n")
    deployment.start(needed("CELERY_HYBRID_TEST_WORKER"))
    deployment.write(CONSUMER)
    found = failed(deployment.verify(needed("CELERY_HYBRID_TEST_WORKER"), letters=letters))
    assert "a worker has run it: it accepts pickle" in found["canary.refused"]


def test_without_the_right_to_look_the_check_is_left_out_and_says_why(deployment):
    deployment.start()
    assert "canary.refused" not in deployment.verify()
    (why,) = deployment.skipped.values()
    assert why.startswith("not tried, because no user may read dead letters: set rabbitmq_letters_password")
    deployment.verify(letters={"reason": "worker1 tries it"})
    assert list(deployment.skipped.values()) == ["worker1 tries it"]


def test_no_worker(deployment):
    found = failed(deployment.verify(inspect_timeout=1, canary_timeout=1))
    assert f"no answer from {deployment.node} within 1 s" in found["workers.answer"]
    assert "no worker took the task within 1 s; it was removed again" in found["canary.roundtrip"]
    assert deployment.queue not in deployment.redis_keys()

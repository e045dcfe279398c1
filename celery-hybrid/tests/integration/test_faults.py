"""RabbitMQ restarts, is away, or lacks what it should have."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import states

from celery_hybrid.errors import ResultStoreError, ResultStoreUnreachableError, TopologyError
from celery_hybrid.rabbitmq.topology import archive_stream

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(240)]


def test_results_survive_a_restart_between_task_and_get(worker, task, shell, in_process):
    done = task("add").delay(2, 3)
    assert done.get(timeout=20) == 5
    unread = task("add").delay(3, 3)
    end = time.monotonic() + 20
    while in_process(f"answer = app.AsyncResult({unread.id!r}).state") != "SUCCESS":
        assert time.monotonic() < end
    shell.restart()
    assert unread.get(timeout=60) == 6
    code = f"answer = [app.AsyncResult(i).get(timeout=20) for i in ({done.id!r}, {unread.id!r})]"
    assert in_process(code) == [5, 6]
    # Everything connects again by itself.
    assert task("add").delay(4, 4).get(timeout=60) == 8


def test_get_that_waits_during_a_restart_ends_with_the_result(worker, task, shell, tmp_path):
    go = tmp_path / "go"
    result = task("wait_for_file").delay(str(go), 120)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(result.get(timeout=120)))
    thread.start()
    time.sleep(1)
    shell.restart()
    go.touch()
    thread.join(60)
    assert answers == ["found"]


def test_idle_connections_notice_a_restart(app, shell, caplog):
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).result == 1
    shell.restart()
    time.sleep(6)
    store = app.backend.store
    assert not store.publisher._link.connected
    app.backend.store_result(task_id + "2", 2, states.SUCCESS)
    assert app.AsyncResult(task_id + "2").result == 2


def test_a_stored_result_survives_kill(app, make_app, shell):
    ids = [str(uuid.uuid4()) for _ in range(200)]
    for task_id in ids:
        app.backend.store_result(task_id, 1, states.SUCCESS)
    shell("systemctl kill -s KILL rabbitmq-server")
    time.sleep(1)
    shell.restart()
    found = make_app().backend.store.archive.results(ids, timeout=60)
    assert set(found) == set(ids)


def test_an_alarm_of_rabbitmq_is_an_error_in_time(app, shell):
    """While its memory or disk alarm is on, RabbitMQ neither confirms nor answers publishers."""
    app.backend.store_result("before", 1, states.SUCCESS)
    shell.ctl("set_vm_memory_high_watermark 0.000001")
    try:
        begun = time.monotonic()
        with pytest.raises(ResultStoreUnreachableError, match="memory or disk alarm"):
            app.backend.store_result("blocked", 1, states.SUCCESS)
        assert time.monotonic() - begun < 13
    finally:
        shell.ctl("set_vm_memory_high_watermark 0.4")
    app.backend.store_result(task_id := str(uuid.uuid4()), 2, states.SUCCESS)
    assert app.AsyncResult(task_id).result == 2


@pytest.fixture
def own_vhost(shell, results_url):
    """A vhost of this test, in which the user of the tests may do everything."""
    vhost = f"hybrid-test-{uuid.uuid4().hex[:8]}"
    parts = urlsplit(results_url)
    shell.ctl(f"add_vhost {vhost}")
    shell.ctl(f"set_permissions -p {vhost} {parts.username} '.*' '.*' '.*'")
    yield urlunsplit(parts._replace(path=f"/{vhost}"))
    shell.ctl(f"delete_vhost {vhost}")


def with_options(make_app, url, **options):
    app = make_app()
    app.conf.result_backend = url
    app.conf.result_backend_transport_options = options
    return app


def test_missing_topology(make_app, own_vhost, caplog):
    app = with_options(make_app, own_vhost, partitions=2)
    with pytest.raises(TopologyError) as caught:
        app.backend.store_result("id", 1, states.SUCCESS)
    vhost = urlsplit(own_vhost).path[1:]
    assert f"RabbitMQ has no celery.results in vhost '{vhost}'" in str(caught.value)
    assert "rabbitmq role" in str(caught.value)
    assert "{'declare': True}" in str(caught.value)
    with pytest.raises(Exception, match=r"RabbitMQ has no celery\.results in vhost"):
        app.AsyncResult("id").get(timeout=5)
    with caplog.at_level(logging.ERROR):
        app.tasks["hybrid.add"].delay(1, 1)
    assert "RabbitMQ has no celery.results" in caplog.text


def test_declare(make_app, own_vhost, shell):
    app = with_options(make_app, own_vhost, partitions=2, declare=True)
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).result == 1
    vhost = urlsplit(own_vhost).path[1:]
    rows = shell.ctl(f"list_queues -p {vhost} --no-table-headers name type durable arguments")
    for name in ("celery.results.0", "celery.results.1", "celery.dead_letters"):
        assert name in rows
    assert "86400s" in rows
    # Again, by another process, and by one that is not told to declare.
    with_options(make_app, own_vhost, partitions=2, declare=True).backend.store_result(task_id, 1, states.SUCCESS)
    assert with_options(make_app, own_vhost, partitions=2).AsyncResult(task_id).result == 1


def test_declare_says_of_dead_letters_what_the_role_says(make_app, own_vhost, shell):
    """Looking must not remove them: RabbitMQ 4 drops what was delivered 20 times unless there is another limit."""
    with_options(make_app, own_vhost, partitions=1, declare=True).backend.store_result("id", 1, states.SUCCESS)
    vhost = urlsplit(own_vhost).path[1:]
    queues = json.loads(shell.ctl(f"list_queues -p {vhost} --formatter json name arguments"))
    declared = next(queue["arguments"] for queue in queues if queue["name"] == "celery.dead_letters")
    if isinstance(declared, list):
        # As RabbitMQ 3.10 shows it.
        declared = {name: value for name, _, value in declared}
    policies = json.loads(shell.ctl(f"list_policies -p {shell.vhost} --formatter json"))
    role = next(json.loads(policy["definition"]) for policy in policies if policy["name"] == "celery.dead_letters")
    assert declared == {f"x-{name}": value for name, value in role.items()} | {"x-queue-type": "quorum"}


def test_wrong_number_of_partitions(make_app, own_vhost):
    with_options(make_app, own_vhost, partitions=4, declare=True).backend.store_result("id", 1, states.SUCCESS)
    with pytest.raises(TopologyError) as caught:
        with_options(make_app, own_vhost, partitions=3).backend.store_result("id", 1, states.SUCCESS)
    assert "more result streams in vhost" in str(caught.value)
    assert "than the 3 that are configured: celery.results.3 exists" in str(caught.value)
    with pytest.raises(TopologyError) as caught:
        with_options(make_app, own_vhost, partitions=5).backend.store_result("id", 1, states.SUCCESS)
    assert "RabbitMQ has no celery.results.4" in str(caught.value)
    assert "set result_backend_transport_options = {'partitions': 4}" in str(caught.value)


def test_a_stream_that_was_deleted_and_declared_again(make_app, own_vhost, shell):
    app = with_options(make_app, own_vhost, partitions=1, declare=True)
    app.conf.result_cache_max = -1
    ids = [str(uuid.uuid4()) for _ in range(5)]
    for task_id in ids:
        app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(ids[0]).state == states.SUCCESS
    vhost = urlsplit(own_vhost).path[1:]
    shell.ctl(f"delete_queue -p {vhost} {archive_stream(0)}")
    # The publisher would not notice before its next connection.
    with pytest.raises(TopologyError, match=r"nothing bound to the exchange .* with the key"):
        app.backend.store_result("other", 1, states.SUCCESS)
    with_options(make_app, own_vhost, partitions=1, declare=True).backend.store_result("new", 2, states.SUCCESS)
    assert app.AsyncResult("new").result == 2
    assert app.AsyncResult(ids[0]).state == states.PENDING


def test_wrong_password(make_app, results_url):
    parts = urlsplit(results_url)
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:wr0ng-w0rd@{parts.netloc.rpartition('@')[2]}"))
    app = with_options(make_app, wrong)
    with pytest.raises(ResultStoreError, match="Check user, password and vhost in result_backend") as caught:
        app.backend.store_result("id", 1, states.SUCCESS)
    assert "wr0ng" not in str(caught.value)
    assert not isinstance(caught.value, OSError)


def test_wrong_vhost(make_app, results_url):
    wrong = urlunsplit(urlsplit(results_url)._replace(path="/no-such-vhost"))
    with pytest.raises(ResultStoreError, match="vhost"):
        with_options(make_app, wrong).backend.store_result("id", 1, states.SUCCESS)


def test_a_healthy_client_causes_no_error_in_the_log_of_the_server(make_app, app, results_url, shell):
    """Nor a warning, also when it ends."""
    name = f"healthy-{uuid.uuid4().hex[:8]}"
    app = with_options(make_app, results_url, **app.conf.result_backend_transport_options, connection_name=name)
    app.backend.store_result("id", 1, states.SUCCESS)
    app.AsyncResult("id").state  # noqa: B018
    assert app.backend.store.replies.start()
    app.backend.store.close()
    time.sleep(2)
    lines = shell("tail -qn 2000 /var/log/rabbitmq/rabbit@*.log").splitlines()
    processes = {re.search(r"<[0-9.]+>", line)[0] for line in lines if name in line}
    assert len(processes) == 3
    mine = [line for line in lines if any(process in line for process in processes)]
    assert not [line for line in mine if "[error]" in line or "[warning]" in line]

"""What a power failure takes from a stream is put back from the journal.

The failure itself is played: RabbitMQ is stopped and the stream gets the files that it had before.
"""

from __future__ import annotations

import time
import uuid

import pytest
from celery import states
from environment import needed

from celery_hybrid.names import archive_stream, partition_of

pytestmark = [pytest.mark.integration, pytest.mark.outages, pytest.mark.timeout(240)]


@pytest.fixture
def lose_tail(shell):
    """Take from a stream what is written within the block."""

    def lose(task_id, partitions, write):
        name = archive_stream(partition_of(task_id, partitions))
        shell("systemctl stop rabbitmq-server")
        # RabbitMQ's own name for the folder: vhost, stream, and when it was made.
        pattern = f"{shell.vhost}_{name.replace('.', '_')}_*"
        folder = shell(f"ls -d /var/lib/rabbitmq/mnesia/*/stream/{pattern}").split()[0]
        shell(f"rm -rf /tmp/stream && cp -a {folder} /tmp/stream && systemctl start rabbitmq-server")
        shell.ctl("await_startup")
        write()
        shell(f"systemctl stop rabbitmq-server && rm -rf {folder} && cp -a /tmp/stream {folder}")
        shell("systemctl start rabbitmq-server")
        shell.ctl("await_startup")

    return lose


def test_lost_without_and_found_with_the_journal(make_app, lose_tail):
    strict, usual, keeper = make_app(), make_app(), make_app()
    for app in (strict, keeper):
        options = app.conf.result_backend_transport_options
        app.conf.result_backend_transport_options = {**options, "survive_power_loss": True}
    partitions = strict.conf.result_backend_transport_options["partitions"]
    first = str(uuid.uuid4())
    number = partition_of(first, partitions)
    second = next(name for _ in range(10_000) if partition_of(name := str(uuid.uuid4()), partitions) == number)

    def write():
        strict.backend.store_result(first, "kept", states.SUCCESS)
        usual.backend.store_result(second, "lost", states.SUCCESS)
        assert {usual.AsyncResult(each).result for each in (first, second)} == {"kept", "lost"}
        for app in (strict, usual):
            app.backend.store.close()

    lose_tail(first, partitions, write)
    reader = make_app()
    assert [reader.AsyncResult(each).state for each in (first, second)] == [states.PENDING] * 2
    # As a worker does when it starts.
    keeper.conf.result_backend = needed("CELERY_HYBRID_TEST_WORKER")
    assert keeper.backend.store.journal.start()
    end = time.monotonic() + 30
    while reader.AsyncResult(first).state == states.PENDING:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert reader.AsyncResult(first).result == "kept"
    assert reader.AsyncResult(second).state == states.PENDING


def test_replay_changes_nothing_that_was_stored_or_forgotten_meanwhile(make_app, shell):
    """RabbitMQ starts again and has lost nothing; the journal has what was there before."""
    app, keeper, reader = make_app(), make_app(), make_app()
    for each in (app, keeper):
        options = each.conf.result_backend_transport_options
        each.conf.result_backend_transport_options = {**options, "survive_power_loss": True}
    keeper.conf.result_backend = needed("CELERY_HYBRID_TEST_WORKER")
    failed, forgotten, kept = (str(uuid.uuid4()) for _ in range(3))
    app.backend.store_result(failed, None, states.STARTED)
    for task_id in (forgotten, kept):
        app.backend.store_result(task_id, 1, states.SUCCESS)
    shell.restart()
    app.backend.store_result(failed, ValueError("x"), states.FAILURE)
    app.backend.forget(forgotten)
    journal = keeper.backend.store.journal
    journal.start()
    assert journal.replayed.wait(60)
    for each in (reader, make_app()):
        found = [each.AsyncResult(task_id).state for task_id in (failed, forgotten, kept)]
        assert found == [states.FAILURE, states.PENDING, states.SUCCESS]

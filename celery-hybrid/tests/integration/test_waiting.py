"""Waiting for a task does not read what was stored before the task was sent."""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid

import pytest
from celery import chain, chord, states
from celery.exceptions import ChordError

from celery_hybrid.names import partition_of
from celery_hybrid.results import archive as archive_module
from celery_hybrid.results import waiting as waiting_module

pytestmark = pytest.mark.integration


def test_a_look_begins_when_the_task_was_sent(make_app, monkeypatch):
    monkeypatch.setattr(archive_module, "_CLOCK_MARGIN", 0.0)
    writer, reader = make_app(), make_app()
    partitions = writer.conf.result_backend_transport_options["partitions"]
    old = [str(uuid.uuid4()) for _ in range(300)]
    for each in old:
        writer.backend.store_result(each, 1, states.SUCCESS)
    time.sleep(1.5)
    sent = time.time()
    number = partition_of(old[0], partitions)
    new = next(name for _ in range(10_000) if partition_of(name := str(uuid.uuid4()), partitions) == number)
    writer.backend.store_result(new, 2, states.SUCCESS)
    archive = reader.backend.store.archive
    assert archive.results([new], since=sent)[new].status == states.SUCCESS
    partition = archive._partitions[number]
    assert partition.since == sent
    # Whoever asks for an old one by id gets it all the same, and what is new as well.
    assert archive.results([old[0], new]).keys() == {old[0], new}
    assert partition.since is None
    # And what goes back far enough already is not read anew.
    offset = partition.next_offset
    assert archive.results([new], since=sent).keys() == {new}
    assert (partition.since, partition.next_offset) == (None, offset)


def test_a_partition_in_which_nothing_is_new_is_not_read(make_app, monkeypatch):
    monkeypatch.setattr(archive_module, "_CLOCK_MARGIN", 0.0)
    writer, reader = make_app(), make_app()
    old = str(uuid.uuid4())
    writer.backend.store_result(old, 1, states.SUCCESS)
    time.sleep(2.5)
    archive = reader.backend.store.archive
    begun = time.monotonic()
    assert archive.results([old], since=time.time()) == {} or len(archive.results([old])) == 1
    assert time.monotonic() - begun < 2
    assert archive.result(old) is not None


def test_results_that_are_pushed_put_the_look_off(worker, task, monkeypatch):
    app = task("add").app
    # Longer than any push takes, on whatever machine.
    patient = dataclasses.replace(app.backend.options, poll_interval=30.0, poll_interval_max=30.0)
    monkeypatch.setattr(app.backend, "options", patient)
    looks = []
    monkeypatch.setattr(type(app.backend.result_consumer), "_look", lambda self, remaining: looks.append(remaining))
    add = task("add")
    assert [add.delay(number, 1).get(timeout=60) for number in range(20)] == list(range(1, 21))
    assert looks == []


@pytest.mark.parametrize("pushed", [True, False])
def test_what_the_header_raised_is_raised_whoever_waits_for_the_body(worker, task, tmp_path, monkeypatch, pushed):
    """As with Celery's Redis backend, and not the ChordError of the body, which comes right behind it."""
    monkeypatch.setattr(waiting_module, "_INTERVAL", 1000.0)
    if not pushed:
        monkeypatch.setattr(waiting_module.ResultConsumer, "deliver", lambda self, record: None)
    path = tmp_path / "go"
    header = chain(task("wait_for_file").si(str(path)), task("fail").si("header"), task("add").si(1, 1))
    result = chord((header, task("add").si(1, 1)), task("total").s()).delay()
    # Later than the first time that the parents are asked for.
    timer = threading.Timer(2.5, path.touch)
    timer.start()
    with pytest.raises(ValueError, match="header"):
        result.get(timeout=60)
    timer.join()
    with pytest.raises(ChordError):
        result.get(timeout=60, follow_parents=False)

"""Waiting for a task does not read what was stored before the task was sent."""

from __future__ import annotations

import dataclasses
import threading
import uuid

import pytest
from celery import chain, chord, states
from celery.exceptions import ChordError

from celery_hybrid.archive.partition import ends_of
from celery_hybrid.names import partition_of
from celery_hybrid.results import waiting as waiting_module

pytestmark = pytest.mark.integration


def in_partition(number, partitions):
    return next(name for _ in range(10_000) if partition_of(name := str(uuid.uuid4()), partitions) == number)


def ends(app):
    connection = app.backend.store.replies._servers.connect("test")
    try:
        return ends_of(connection, app.backend.options.partitions, patience=2.0)
    finally:
        connection.close()


def test_a_look_begins_where_the_archive_ended_when_the_task_was_sent(make_app):
    writer, reader = make_app(), make_app()
    partitions = writer.backend.options.partitions
    old = [in_partition(3 % partitions, partitions) for _ in range(100)]
    for each in old:
        writer.backend.store_result(each, 1, states.SUCCESS)
    sent = ends(writer)
    number = 3 % partitions
    new = in_partition(number, partitions)
    writer.backend.store_result(new, 2, states.SUCCESS)
    archive = reader.backend.store.archive
    assert archive.results([new], since=sent)[new].status == states.SUCCESS
    partition = archive._partitions[number]
    assert (partition.complete, partition.begin) == (False, sent.places[number][0])
    # An old one is found by its id all the same, and what is new as well.
    assert archive.results([old[0], new]).keys() == {old[0], new}
    assert partition.complete
    # What goes back far enough already is not read again.
    offset = partition.next_offset
    assert archive.results([new], since=sent).keys() == {new}
    assert (partition.complete, partition.next_offset) == (True, offset)


def test_an_end_that_is_not_true_any_more_is_not_believed(make_app):
    """The stream was cut by a power failure, or deleted and declared again."""
    writer, reader = make_app(), make_app()
    partitions = writer.backend.options.partitions
    ids = [in_partition(2 % partitions, partitions) for _ in range(20)]
    for each in ids:
        writer.backend.store_result(each, 1, states.SUCCESS)
    sent = ends(writer)
    offset, fingerprint = sent.places[2 % partitions]
    wrong = dataclasses.replace(sent, places={2 % partitions: (offset, fingerprint + 1)})
    beyond = dataclasses.replace(sent, places={2 % partitions: (offset + 1000, fingerprint)})
    for each in (wrong, beyond):
        archive = make_app().backend.store.archive
        assert archive.results(ids, since=each).keys() == set(ids)
    assert reader.backend.store.archive.results(ids[:1], since=sent) == {}


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
def test_what_the_header_raised_is_raised_for_every_waiter_of_the_body(worker, task, tmp_path, monkeypatch, pushed):
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

"""The backend without a server: nothing listens on the port that is used here."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time

import pytest
from celery import Celery, group
from celery.exceptions import BackendGetMetaError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_hybrid.errors import OptionError, ResultStoreUnreachableError
from celery_hybrid.results.backend import AMQPBackend
from celery_hybrid.results.store import Store, store_of

SECRET = "s3cr3t-w0rd"
NOWHERE = f"amqp://me:{SECRET}@127.0.0.1:9/celery"


def add_numbers(x, y):
    return x + y


@pytest.fixture
def make_app():
    def make(url=NOWHERE, **settings):
        app = Celery("unit", broker="memory://", backend=url, set_as_current=False)
        app.conf.update(**settings)
        return app

    return make


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.mark.parametrize("url", [NOWHERE, NOWHERE.replace("amqp://", "amqps://")])
def test_found_by_the_url(make_app, url):
    backend = make_app(url).backend
    assert type(backend) is AMQPBackend
    assert backend.persistent
    assert backend.supports_autoexpire
    assert backend.supports_native_join


def test_as_uri(make_app):
    backend = make_app(f"{NOWHERE};amqp://you:{SECRET}2@other/celery").backend
    assert backend.as_uri() == "amqp://me:********@127.0.0.1:9/celery;amqp://you:********@other/celery"
    assert SECRET in backend.as_uri(include_password=True)


def test_options_are_checked_at_once(make_app):
    with pytest.raises(OptionError, match=r"no option 'partition'\. Did you mean partitions"):
        _ = make_app(result_backend_transport_options={"partition": 3}).backend


def test_the_url_is_checked_at_once(make_app):
    with pytest.raises(OptionError, match="result_backend, host 1") as caught:
        _ = make_app(f"amqp://me:{SECRET}@h:port/celery").backend
    assert SECRET not in str(caught.value)


def test_options_of_the_url(make_app):
    backend = make_app("amqps://me:x@h/celery?ca_certs=/ca.pem").backend
    assert backend.store._options.ca_certs == "/ca.pem"


def test_one_store_for_all_threads_and_copies(app):
    stores = [app.backend.store, AMQPBackend(app=app, url=NOWHERE).store]
    thread = threading.Thread(target=lambda: stores.append(app.backend.store))
    thread.start()
    thread.join()
    assert len(stores) == 3
    assert len(set(map(id, stores))) == 1


def test_one_address_for_all_threads(app):
    assert isinstance(app.backend, AMQPBackend)
    addresses = [app.thread_oid, app.backend.store.reply_to]
    thread = threading.Thread(target=lambda: addresses.append(app.thread_oid))
    thread.start()
    thread.join()
    assert len(addresses) == 3
    assert len(set(addresses)) == 1


def test_signatures_frozen_before_there_was_a_backend_carry_the_address(app):
    add = app.task(add_numbers, name="unit.add", shared=False)
    frozen = group(add.s(1, 1), add.s(2, 2))
    frozen.freeze()
    assert frozen.tasks[0].options["reply_to"] == app.backend.store.reply_to


def test_an_address_from_before_a_fork_is_not_used(app):
    """As with gunicorn's preload: signatures are frozen first, then come the forks, then the backends."""
    before = app.thread_oid
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, f"{app.backend.store.reply_to} {app.thread_oid}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    address, oid = os.read(read, 1000).decode().split()
    assert address == oid != before
    assert app.backend.store.reply_to == before


def test_another_application_has_another_address(make_app):
    one, two = make_app(), make_app()
    assert one.backend.store.reply_to != two.backend.store.reply_to


def test_a_pickled_result_holds_no_password(app):
    app.set_current()
    result = app.AsyncResult("some-id")
    pickled = pickle.dumps(result)
    assert SECRET.encode() not in pickled
    restored = pickle.loads(pickled)  # noqa: S301
    assert restored.id == "some-id"
    assert restored.backend.url == NOWHERE
    assert restored.backend.store is app.backend.store


def test_storing_fails_soon_and_shows_no_password(app, caplog):
    begun = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(ResultStoreUnreachableError) as caught:
        app.backend.store_result("id", 1, "SUCCESS")
    assert time.monotonic() - begun < 2
    assert "RabbitMQ at 127.0.0.1:9 (vhost celery, user me)" in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text
    assert app.backend.exception_safe_to_retry(caught.value)


def test_every_host_is_tried(make_app):
    with pytest.raises(ResultStoreUnreachableError) as caught:
        make_app(f"{NOWHERE};127.0.0.1:10").backend.store_result("id", 1, "SUCCESS")
    assert "127.0.0.1:9 " in str(caught.value)
    assert "127.0.0.1:10 " in str(caught.value)


def test_reading_fails_with_the_error_that_celery_expects(app):
    with pytest.raises(BackendGetMetaError, match=r"RabbitMQ at 127\.0\.0\.1:9") as caught:
        app.AsyncResult("id").state  # noqa: B018
    assert caught.value.task_id == "id"
    assert app.backend.exception_safe_to_retry(caught.value)


def test_waiting_ends_in_time(app):
    begun = time.monotonic()
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult("id").get(timeout=1)
    assert 1.0 <= time.monotonic() - begun < 2


def test_tasks_are_sent_without_the_result_store_and_it_is_said_once(app, caplog):
    add = app.task(add_numbers, name="unit.add", shared=False)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            add.delay(1, 1)
    assert time.monotonic() - begun < 3
    said = [record.getMessage() for record in caplog.records if record.name == "celery_hybrid.rabbitmq.receiver"]
    assert len(said) == 1
    assert said[0].startswith("No results are pushed to this process now")
    assert SECRET not in caplog.text


def test_a_result_that_is_ignored_needs_nothing(app):
    add = app.task(add_numbers, name="unit.add", shared=False, ignore_result=True)
    add.delay(1, 1)
    assert app.backend.store.replies._thread is None


def test_compression_of_the_application(make_app):
    backend = make_app(result_compression="gzip").backend
    assert backend._codec.encode("id", "result", {"result": 1, "status": "SUCCESS"}).compression == "application/x-gzip"


def test_expires(make_app):
    import datetime

    assert make_app(result_expires=datetime.timedelta(minutes=1)).backend.store._expires == 60.0


def test_stores_end_with_their_application(make_app):
    import gc
    import weakref

    app = make_app()
    store = weakref.ref(store_of(app, NOWHERE, app.backend.options, 1.0))
    assert isinstance(store(), Store)
    del app
    gc.collect()
    gc.collect()  # the application was the last to hold the cycles of the store
    assert store() is None


def test_chord_is_polled_by_celery_where_the_broker_is_not_redis(app):
    app.task(name="unit.add", shared=False)(add_numbers)
    sent = []
    app.tasks["celery.chord_unlock"].apply_async = lambda args, kwargs, **_: sent.append(args)
    backend = app.backend
    assert backend.chords is None
    header = app.GroupResult("group", [app.AsyncResult("one")])
    body = app.signature("unit.add").set(task_id="body")
    backend.apply_chord((header.id, header.results), body)
    backend.set_chord_size("group", 1)
    assert sent[0][0] == "group"
    with pytest.raises(NotImplementedError):
        backend.add_to_chord("group", app.AsyncResult("two"))

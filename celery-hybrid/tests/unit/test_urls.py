from __future__ import annotations

import pytest

from celery_hybrid.errors import OptionError
from celery_hybrid.masking import masked
from celery_hybrid.rabbitmq import urls

SECRET = "s3cr3t"


def test_whole():
    (server,), query = urls.parse("amqp://me:pa%40ss%3Aw@rabbit:5673/my%2Fhost")
    assert server == urls.Server("rabbit", 5673, "me", "pa@ss:w", "my/host", tls=False)
    assert query == {}
    assert "pa@ss" not in repr(server) + str(server)


def test_defaults():
    (server,), _ = urls.parse("amqp://rabbit")
    assert server == urls.Server("rabbit", 5672, "guest", "guest", "/", tls=False)


def test_tls():
    (server,), query = urls.parse("amqps://me:x@rabbit/celery?ca_certs=/etc/ca.pem&certfile=/c&keyfile=/k")
    assert (server.port, server.tls) == (5671, True)
    assert query == {"ca_certs": "/etc/ca.pem", "certfile": "/c", "keyfile": "/k"}


def test_cluster():
    servers, _ = urls.parse(f"amqp://me:{SECRET}@one:1/celery;two;amqp://you:other@three:3/other; [::1]:4 ;")
    assert [server.address for server in servers] == ["one:1", "two:5672", "three:3", "[::1]:4"]
    assert [(server.user, server.password, server.vhost) for server in servers] == [
        ("me", SECRET, "celery"),
        ("me", SECRET, "celery"),
        ("you", "other", "other"),
        ("me", SECRET, "celery"),
    ]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "is empty"),
        (" ; ", "is empty"),
        ("rabbit:5672", "host 1: the scheme is missing"),
        (f"redis://me:{SECRET}@h/0", "the scheme must be amqp or amqps, not 'redis'"),
        (f"amqp://me:{SECRET}@/celery", "the host is missing"),
        (f"amqp://me:{SECRET}@h:port/celery", "it is not a URL"),
        (f"amqp://me:{SECRET}/x@h:5672/celery", "it is not a URL"),
        (f"amqp://me:{SECRET}@h/celery#x", "must be written as %23"),
        (f"amqp://me:{SECRET}@h/celery?ca_cert=/x", "the URL has no option 'ca_cert'"),
        (f"amqp://me:{SECRET}@h/celery;amqps://me:{SECRET}@h2/celery", "mixes amqp:// and amqps://"),
        (f"amqp://me:{SECRET}@h/celery;amqp://me:{SECRET}@:x", "host 2: it is not a URL"),
    ],
)
def test_refused_without_showing_the_password(url, sentence):
    with pytest.raises(OptionError) as caught:
        urls.parse(url)
    assert sentence in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:s3cr3t@h:5672/celery", "amqp://me:********@h:5672/celery"),
        ("amqp://me:s3cr3t@h/c;amqp://you:s3cr3t2@g/c", "amqp://me:********@h/c;amqp://you:********@g/c"),
        ("amqps://me:a:s3cr3t@b@h/c", "amqps://me:********@h/c"),
        ("amqp://me:s3cr3t/@h/c", "amqp://me:********@h/c"),
        ("amqp://:s3cr3t@h/c", "amqp://:********@h/c"),
        ("amqp://me@h/c", "amqp://me@h/c"),
        ("amqp://h", "amqp://h"),
    ],
)
def test_masked(url, shown):
    assert masked(url) == shown

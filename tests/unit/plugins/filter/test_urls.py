"""URLs of servers: made from parts, judged, never repeated."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from ansible_collections.celeryops.hybrid.plugins.filter import server_url, url_endpoints, url_problem

make = server_url.FilterModule().filters()["server_url"]
problem = url_problem.FilterModule().filters()["url_problem"]
endpoints = url_endpoints.FilterModule().filters()["url_endpoints"]

SECRET = 's3cr:t/@#?%&+ $\\"`=!^;ü'


def test_any_password_survives() -> None:
    url = make("broker1", "redis", 6379, "cel@ry", SECRET, 0)
    parts = urlsplit(url)
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == ("cel@ry", SECRET)
    assert (parts.hostname, parts.port, parts.path) == ("broker1", 6379, "/0")
    assert problem(url, "broker") == ""


def test_virtual_host_and_address_are_encoded() -> None:
    url = make("fd00::1", "amqp", 5672, "worker", SECRET, "a/b")
    assert url.startswith("amqp://worker:")
    assert url.endswith("@[fd00::1]:5672/a%2Fb")
    assert problem(url, "results") == ""


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("broker", "redis://:secretsecret@h/0"),
        ("broker", "rediss://u:secretsecret@h:6380/1"),
        ("broker", "redis+socket:///run/redis/redis.sock?virtual_host=0"),
        ("broker", "sentinel://:secretsecret@h1:26379;sentinel://:secretsecret@h2:26379/0"),
        ("results", "amqp://u:secretsecret@h/celery"),
        ("results", "amqps://u:secretsecret@h1:5671/celery;amqps://u:secretsecret@h2:5671/celery"),
        ("results", "amqps://u:secretsecret@h/celery?ca_certs=/etc/ca.pem"),
    ],
)
def test_good_urls(kind: str, url: str) -> None:
    assert problem(url, kind) == ""


@pytest.mark.parametrize(
    ("kind", "url", "words"),
    [
        ("broker", "", "is missing"),
        ("broker", None, "is missing"),
        ("broker", 5, "is missing"),
        ("broker", "http://u:secretsecret@h", "redis://"),
        ("broker", "amqp://u:secretsecret@h/celery", "redis://"),
        ("broker", "h:6379", "redis://"),
        ("results", "rpc://", "amqp://"),
        ("results", "redis://u:secretsecret@h/0", "amqp://"),
        ("broker", "redis://h:6379/0", "no password"),
        ("broker", "redis://u@h:6379/0", "no password"),
        ("broker", "redis://u:@h:6379/0", "no password"),
        ("results", "amqp://:secretsecret@h/celery", "no user"),
        ("broker", "redis://u:secret@secret@h/0", "percent-encoded"),
        ("broker", "redis://u:secret/secret@h/0", "percent-encoded"),
        ("broker", "redis://u:secret#secret@h/0", "percent-encoded"),
        ("broker", "redis://u:secret?secret@h/0", "percent-encoded"),
        ("broker", "redis://u:secret:secret@h/0", "percent-encoded"),
        ("broker", "redis://u:secret%zzsecret@h/0", "percent-encoded"),
        ("broker", "redis://u:secretsecret@h:port/0", "port"),
        ("broker", "redis://u:secretsecret@h:0/0", "port"),
        ("broker", "redis://u:secretsecret@h:70000/0", "port"),
        ("broker", "redis://u:secretsecret@:6379/0", "no host"),
        ("broker", "redis://u:secretsecret@h/celery", "number of a database"),
        ("results", "amqp://u:secretsecret@h", "virtual host"),
        ("results", "amqp://u:secretsecret@h/", "virtual host"),
        ("results", "amqp://u:secretsecret@h/a/b", "%2F"),
        ("broker", "redis://u:secret secret@h/0", "blank"),
        ("broker", "redis://u:secretsecret@h/0\n", "control character"),
        ("results", "amqp://u:secretsecret@h/celery;amqps://u:secretsecret@h/celery", "mixes"),
        ("results", "amqp://u:secretsecret@h/celery;amqp://h2/celery", "URL 2 of 2"),
        ("results", "amqp://u:secretsecret@h/celery;", "URL 2 of 2"),
        ("broker", "redis+socket://run/redis.sock", "path of a socket"),
    ],
)
def test_bad_urls_have_a_reason_without_the_secret(kind: str, url: object, words: str) -> None:
    reason = problem(url, kind)
    assert words in reason
    assert "secret" not in reason


def test_endpoints() -> None:
    assert endpoints("redis://:x@h/0") == [{"host": "h", "port": 6379}]
    assert endpoints("amqps://u:x@h1:1234/v;amqps://u:x@[fd00::1]/v") == [
        {"host": "h1", "port": 1234},
        {"host": "fd00::1", "port": 5671},
    ]
    assert endpoints("redis+socket:///run/redis.sock") == []


def test_options_stand_in_the_query() -> None:
    options = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/etc/ca & more.pem", "ssl_certfile": ""}
    url = make("broker1", "rediss", 6380, "celery", SECRET, 0, options)
    assert url.endswith("@broker1:6380/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca%20%26%20more.pem")
    assert problem(url, "broker") == ""
    assert "?" not in make("broker1", "redis", 6379, "celery", "secretsecret", 0, {"ssl_certfile": ""})

from __future__ import annotations

import json
import ssl

import kombu
import kombu.transport
import pytest
from kombu.transport import redis as stock

from celery_hybrid.broker import transport


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
    monkeypatch.setattr(kombu.transport, "_transport_cache", {"redis": stock.Transport})
    transport.install()


def test_install_takes_the_schemes_of_redis_and_no_other(installed):
    assert kombu.transport.get_transport_cls("redis") is transport.Transport
    assert kombu.transport.get_transport_cls("rediss") is transport.Transport
    assert kombu.transport.get_transport_cls("sentinel") is transport.SentinelTransport
    assert kombu.transport.get_transport_cls("memory").driver_type == "memory"


def test_an_installed_transport_keeps_tls(installed):
    connection = kombu.Connection("rediss://h:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem")
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}
    assert connection.get_transport_cls() is transport.Transport


def test_an_installed_transport_outlives_the_switch_to_another_url(installed):
    connection = kombu.Connection("redis://one/0;redis://two/0")
    connection.maybe_switch_next()
    assert connection.hostname == "two"
    assert connection.get_transport_cls() is transport.Transport


def test_it_is_celerys_redis_transport():
    assert transport.Transport.driver_type == "redis"
    assert issubclass(transport.SentinelChannel, stock.SentinelChannel)
    assert transport.SentinelChannel.connection_class is stock.SentinelChannel.connection_class
    assert set(stock.SentinelChannel.from_transport_options) < set(transport.SentinelChannel.from_transport_options)


class _QoS:
    def __init__(self, free):
        self.free = free

    def can_consume_max_estimate(self):
        return self.free


@pytest.mark.parametrize(
    ("free", "batch", "most"), [(None, 32, 1), (0, 32, 1), (4, 1, 1), (4, 2, 2), (4, 32, 4), (100, 64, 32)]
)
def test_a_take_asks_for_what_the_prefetch_count_allows(free, batch, most):
    channel = transport.Channel.__new__(transport.Channel)
    channel._qos, channel._batch = _QoS(free), batch
    channel._queue_cycle = transport.round_robin_cycle()
    assert channel._most() == most


def test_a_take_asks_for_one_when_celery_counts_differently():
    channel = transport.Channel.__new__(transport.Channel)
    channel._qos, channel._batch = _QoS(8), 8
    channel._queue_cycle = transport.round_robin_cycle()
    # What worker_disable_prefetch does.
    channel._qos.can_consume = lambda: True
    assert channel._most() == 1


def test_names_of_queues_are_json():
    channel = transport.Channel.__new__(transport.Channel)
    channel._unacknowledged = {"b"}
    channel._queue_cycle = transport.priority_cycle()
    channel.global_keyprefix = "p:"
    keys, args = channel._take_arguments(['a"', "b"], 3)
    assert keys[0] == "unacked"
    assert keys[1:4] == ["p:unacked_index", "p:celery.undecodable", "p:celery.run"]
    assert [key.rpartition(".")[0] for key in keys[4:6]] == ["p:celery.watch", "p:celery.watcher"]
    assert keys[6:8] == ['p:a"', "p:b"]
    assert args[:3] == [3, 0, "10"]
    assert [json.loads(name) for name in args[7:]] == ['a"', "b"]

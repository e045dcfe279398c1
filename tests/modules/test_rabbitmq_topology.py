"""rabbitmq_topology and rabbitmq_topology_info against RabbitMQ 3.10 and 4.0."""

from __future__ import annotations

import uuid

import pytest
from ansible_collections.celeryops.hybrid.plugins.modules import rabbitmq_topology


@pytest.fixture(scope="session")
def login(host, secrets):
    with host.tunnel(15672) as port:
        yield {"url": f"http://127.0.0.1:{port}", "username": "admin", "password": secrets["rabbitmq_admin"]}


@pytest.fixture(scope="session")
def topology(login, module):
    def run(check=False, **declared):
        return module(rabbitmq_topology, check=check, **{**login, **declared})

    return run


@pytest.fixture
def vhost(topology):
    name = f"t/{uuid.uuid4().hex[:8]} ü"
    topology(vhosts=[{"name": name}])
    yield name
    topology(vhosts=[{"name": name, "state": "absent"}])


def test_queue_is_made_once(topology, vhost):
    queues = [{"vhost": vhost, "name": "a", "type": "quorum"}]
    assert topology(check=True, queues=queues)["changed"]
    assert topology(queues=queues)["changed"]
    assert not topology(queues=queues)["changed"]

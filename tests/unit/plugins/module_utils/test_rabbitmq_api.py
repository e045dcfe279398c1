"""Where the management API is, and what is read there."""

from __future__ import annotations

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import (
    api_arguments,
    api_from,
    objects_of,
)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:15672"),
        ({"url": "https://rabbit1:15671/"}, "https://rabbit1:15671"),
        ({"login_host": "rabbit1", "login_port": 443, "login_protocol": "https"}, "https://rabbit1:443"),
    ],
)
def test_address_is_given_as_a_url_or_in_parts(given, url):
    login = {"login_user": "admin", "login_password": "of-the-administrator", "cacert": "/etc/ca.pem"}
    with patch_module_args({**login, **given}):
        api = api_from(AnsibleModule(argument_spec=api_arguments()).params)
    assert api._url == url
    assert api._username == "admin"
    assert api._options["ca_path"] == "/etc/ca.pem"


class Recorder:
    """Answers with the request."""

    def get(self, *path, query=""):
        return [*path, query]


def test_objects_are_read_with_the_wanted_fields_in_their_virtual_host():
    assert objects_of(Recorder(), "/", {"queues": ["name", "type"], "bindings": [], "overview": ["object_totals"]}) == {
        "queues": ["queues", "/", "?columns=name,type"],
        "bindings": ["bindings", "/", ""],
        "overview": ["overview", "?columns=object_totals"],
    }


def test_kind_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="objects: shovels cannot be read; take bindings, definitions, exchanges"):
        objects_of(Recorder(), "/", {"shovels": []})

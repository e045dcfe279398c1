"""Where the management API is."""

from __future__ import annotations

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_api import api_arguments, api_from


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

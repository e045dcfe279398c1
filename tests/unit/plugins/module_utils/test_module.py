"""What the host's journal says of a module that was run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.celeryops.hybrid.plugins.module_utils._module import Module

PACKAGE = "ansible_collections.celeryops.hybrid.plugins.modules"
MODULES = sorted(path.stem for path in (Path(__file__).resolve().parents[4] / "plugins" / "modules").glob("*.py"))
# As Python writes them they are others.
SECRETS = ["-----BEGIN KEY-----\nMIIBVwIBADAN\n-----END KEY-----\n", "back\\slash", "quo'te\"s"]
SPECIFICATION = {
    "files": {
        "type": "list",
        "elements": "dict",
        "options": {"path": {"type": "str"}, "secret": {"type": "str", "no_log": True}},
    }
}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_inside_of_an_option_is_not_logged(secret, monkeypatch):
    logged = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda self, msg, log_args=None: logged.append(msg))
    with patch_module_args({"files": [{"path": "/etc/one", "secret": secret}]}):
        module = Module(argument_spec=SPECIFICATION)
    (line,) = logged
    assert "/etc/one" in line
    assert not [word for word in ("MIIB", "slash", "quo") if word in line]
    assert module.params["files"][0]["secret"] == secret


DSN = "amqp://shop:S3cr3t-of-the-upstream@rabbit2"
LOGIN = {"username": "admin", "password": "of-the-administrator"}
# No server is there: each fails, and returns what it was given as 'invocation', which -vvv shows.
GIVEN = {
    "redis_runtime": {"port": 1, "settings": [{"name": "masterauth", "value": "S3cr3t-of-the-master"}]},
    "rabbitmq_topology": {
        "url": "http://127.0.0.1:1",
        "parameters": [
            {"component": "federation-upstream", "vhost": "/", "name": "two", "value": {"uri": DSN}},
            {"component": "shovel", "vhost": "/", "name": "three", "value": {"dest-password": "S3cr3t-of-the-shovel"}},
        ],
    },
}


@pytest.mark.parametrize("name", GIVEN)
def test_secret_among_values_is_neither_logged_nor_returned(name, monkeypatch, capsys):
    logged = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda self, msg, log_args=None: logged.append(f"{msg}{log_args}"))
    module = importlib.import_module(f"{PACKAGE}.{name}")
    with patch_module_args({**LOGIN, **GIVEN[name]}), pytest.raises(SystemExit):
        module.main()
    told = capsys.readouterr().out
    assert '"failed": true' in told
    # Since ansible-core 2.21 'invocation' is added by the controller; the log has it with every version.
    assert any(word in told + "".join(logged) for word in ("three", "masterauth"))
    assert "S3cr3t" not in told
    assert "S3cr3t" not in "".join(logged)


def has_secret(options, inside=False):
    return any(
        (inside and option.get("no_log")) or has_secret(option.get("options", {}), inside=True)
        for option in options.values()
    )


@pytest.mark.parametrize("name", MODULES)
def test_modules_with_a_secret_inside_of_an_option_use_it(name, monkeypatch):
    module = importlib.import_module(f"{PACKAGE}.{name}")
    built = []

    def build(kind):
        def init(self, argument_spec, **_):
            built.append((kind, argument_spec))
            raise SystemExit

        return init

    monkeypatch.setattr(Module, "__init__", build(Module))
    monkeypatch.setattr(basic.AnsibleModule, "__init__", build(basic.AnsibleModule))
    with pytest.raises(SystemExit):
        module.main()
    ((kind, specification),) = built
    assert has_secret(specification) == (kind is Module)

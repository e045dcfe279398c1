"""The filters of the `redis` and `rabbitmq` roles: found by name, documented, and clear about what they refuse."""

from __future__ import annotations

import base64
import hashlib
import importlib

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import size_in_bytes

FILTERS = [
    "erlang_cookie_problem",
    "host_limits",
    "password_problem",
    "rabbitmq_conf",
    "rabbitmq_objects",
    "rabbitmq_partitions_problem",
    "rabbitmq_password_hash",
    "rabbitmq_problems",
    "redis_acl",
    "redis_celery_rules",
    "redis_conf",
    "redis_problems",
]


def module_of(name):
    return importlib.import_module(f"ansible_collections.celeryops.hybrid.plugins.filter.{name}")


def load(name):
    return module_of(name).FilterModule().filters()[name]


@pytest.mark.parametrize("name", FILTERS)
def test_filter_has_the_name_of_its_file_and_says_what_it_does(name):
    module = module_of(name)
    assert list(module.FilterModule().filters()) == [name]
    assert yaml.safe_load(module.DOCUMENTATION)["name"] == name
    assert yaml.safe_load(module.EXAMPLES)
    assert "_value" in yaml.safe_load(module.RETURN)


def test_redis_configuration_gives_the_reason_of_a_setting():
    settings = [{"name": "appendonly", "value": True, "why": "Because."}, {"name": "save", "value": ""}]
    assert load("redis_conf")(settings) == '# Because.\nappendonly yes\nsave ""\n'


def test_redis_acl_holds_no_plaintext_password():
    text = load("redis_acl")([{"name": "celery", "password": "0a8c5bd2a6e94f3f9d17c2be", "rules": ["~*", "+@read"]}])
    assert text.startswith("user celery on #")
    assert text.endswith(" ~* +@read\n")
    assert "0a8c5bd2a6e94f3f9d17c2be" not in text


def test_celery_has_single_commands_and_producers_have_fewer():
    rules = load("redis_celery_rules")
    assert set(rules(3, "producer")[5:-2]) < set(rules(3))
    assert "+hgetall" in rules(3, commands=["hgetall"])
    with pytest.raises(AnsibleFilterError, match="neither 'worker' nor 'producer'"):
        rules(3, "admin")


def test_rabbitmq_hash_is_salted():
    load_hash = load("rabbitmq_password_hash")
    first, second = load_hash("0a8c5bd2a6e94f3f"), load_hash("0a8c5bd2a6e94f3f")
    assert first != second
    salt, digest = base64.b64decode(first)[:4], base64.b64decode(first)[4:]
    assert hashlib.sha256(salt + b"0a8c5bd2a6e94f3f").digest() == digest


@pytest.mark.parametrize(
    ("size", "count"), [("512mb", 536870912), ("1GB", 1073741824), (1048576, 1048576), ("1k", 1000)]
)
def test_sizes_are_those_of_redis(size, count):
    assert size_in_bytes(size) == count


def test_word_is_refused_as_a_size():
    with pytest.raises(ValueError, match="'lots' is not a valid size"):
        size_in_bytes("lots")


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("redis_conf", ([{"name": "a", "value": "x\ny"}],), "line break"),
        ("redis_acl", ([{"name": "a b"}],), "not a valid name for a Redis user"),
        ("redis_acl", ([{"name": "a", "rules": [">password"]}],), "not a rule of Redis' ACL language"),
        ("redis_acl", ([{"name": "a\n"}],), "not a valid name for a Redis user"),
        ("redis_acl", ([{"name": "a", "rules": ["~*\nuser b on nopass"]}],), "not a rule of Redis' ACL language"),
        ("redis_acl", ([{"name": "a", "rules": ["~* +@all"]}],), "not a rule of Redis' ACL language"),
        ("rabbitmq_conf", ([{"name": "a"}],), "value"),
        (
            "rabbitmq_partitions_problem",
            ({"queues": [{"vhost": "v", "name": "celery.results.0"}]}, "v", "many"),
            "many",
        ),
    ],
)
def test_wrong_input_is_reported(name, arguments, reason):
    with pytest.raises(AnsibleFilterError, match=reason) as error:
        load(name)(*arguments)
    assert f"celeryops.hybrid.{name}" in str(error.value)

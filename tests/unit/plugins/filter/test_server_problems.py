"""The rules across the variables of the redis and rabbitmq roles: each broken one is a sentence with its remedy."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.filter import rabbitmq_problems, redis_problems

PROBLEMS = {
    "redis": redis_problems.FilterModule().filters()["redis_problems"],
    "rabbitmq": rabbitmq_problems.FilterModule().filters()["rabbitmq_problems"],
}
HOST = {
    "host": "server1",
    "distribution": "Debian",
    "release": "12",
    "platforms": {"Debian": ["12", "13"]},
    "addresses": ["10.0.0.1", "fd00::1"],
    "memory_mb": 4096,
    "tls_problems": [],
}
SECRET = {name: f"{name}-0123456789abcdef" for name in ("admin", "worker", "client", "monitoring", "letters", "celery")}
REDIS = {
    **HOST,
    "databases": 16,
    "protected": ["maxmemory-policy", "port"],
    "redis_admin_password": SECRET["admin"],
    "redis_bind_addresses": ["127.0.0.1", "10.0.0.1"],
    "redis_client_password": "",
    "redis_config": {},
    "redis_db": 0,
    "redis_extra_users": [],
    "redis_maxmemory": "2048mb",
    "redis_monitoring_password": "",
    "redis_password": SECRET["celery"],
    "redis_plain_enabled": True,
    "redis_port": 6379,
    "redis_tls_enabled": False,
    "redis_tls_port": 6380,
}
RABBITMQ = {
    **HOST,
    "protected": ["listeners.tcp", "default_user"],
    "rabbitmq_bind_addresses": ["127.0.0.1", "10.0.0.1"],
    "rabbitmq_config": {},
    "rabbitmq_management_port": 15672,
    "rabbitmq_node_name": "rabbit@localhost",
    "rabbitmq_partitions": 16,
    "rabbitmq_plain_enabled": True,
    "rabbitmq_plugins": ["rabbitmq_management"],
    "rabbitmq_port": 5672,
    "rabbitmq_result_expires": 86400,
    "rabbitmq_tls_enabled": False,
    "rabbitmq_tls_port": 5671,
    "rabbitmq_vhost": "celery",
    **{f"rabbitmq_{kind}_user": kind for kind in ("admin", "worker", "client", "monitoring", "letters")},
    **{f"rabbitmq_{kind}_password": SECRET[kind] for kind in ("admin", "worker", "client", "monitoring")},
    "rabbitmq_letters_password": "",
}
DECLARED: dict[str, dict[str, Any]] = {"redis": REDIS, "rabbitmq": RABBITMQ}
USER = {"name": "reports", "password": SECRET["worker"], "rules": ["+@read"]}


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("redis", {}),
        ("rabbitmq", {}),
        ("redis", {"release": "13", "redis_client_password": SECRET["client"], "redis_extra_users": [USER]}),
        ("redis", {"redis_bind_addresses": ["127.0.0.5", "fd00::1", "*"]}),
        ("redis", {"redis_plain_enabled": False, "redis_tls_enabled": True}),
        ("redis", {"redis_config": {"appendfsync": "always"}, "redis_maxmemory": "1G", "redis_db": 15}),
        ("redis", {"databases": 20, "redis_db": 17}),
        ("rabbitmq", {"rabbitmq_bind_addresses": ["::"], "rabbitmq_letters_password": SECRET["letters"]}),
        ("rabbitmq", {"rabbitmq_config": {"heartbeat": 30}, "rabbitmq_partitions": 64}),
        # A certificate does not matter while TLS is off.
        ("rabbitmq", {"tls_problems": ["no certificate"]}),
    ],
)
def test_good_declaration_has_no_problem(role: str, change: dict[str, Any]) -> None:
    assert PROBLEMS[role]({**DECLARED[role], **change}) == []


@pytest.mark.parametrize("role", DECLARED)
@pytest.mark.parametrize(
    ("change", "variable", "remedy"),
    [
        ({"release": "11"}, "runs Debian 11", "Debian 12 and 13"),
        ({"distribution": "Ubuntu"}, "runs Ubuntu 12", "Debian 12 and 13"),
        ({"ROLE_plain_enabled": False}, "ROLE_plain_enabled", "ROLE_tls_enabled"),
        ({"ROLE_tls_enabled": True, "tls_problems": ["its certificate has expired"]}, "server1", "has expired"),
        ({"ROLE_bind_addresses": []}, "ROLE_bind_addresses", "the list is empty"),
        ({"ROLE_bind_addresses": ["10.9.9.9"]}, "ROLE_bind_addresses", "It has 127.0.0.1, ::1, 10.0.0.1"),
        ({"ROLE_port": 0}, "ROLE_port", "1 to 65535"),
        ({"ROLE_tls_port": 70000}, "ROLE_tls_port", "1 to 65535"),
        ({"ROLE_admin_password": ""}, "ROLE_admin_password is missing", "openssl rand -hex 24"),
        ({"ROLE_client_password": "short"}, "ROLE_client_password is weak", "ROLE_CLIENT_PASSWORD"),
    ],
)
def test_broken_rule_of_both_roles_has_a_reason(role: str, change: dict[str, Any], variable: str, remedy: str) -> None:
    def named(text: str) -> str:
        return text.replace("ROLE", role if "ROLE_CLIENT" not in text else role.upper())

    found = PROBLEMS[role]({**DECLARED[role], **{named(name): value for name, value in change.items()}})
    assert len(found) == 1, found
    assert named(variable) in found[0]
    assert named(remedy) in found[0]


@pytest.mark.parametrize(
    ("role", "change", "variable", "remedy"),
    [
        ("redis", {"redis_password": SECRET["admin"]}, "redis_admin_password are the same", "openssl"),
        ("redis", {"redis_client_password": SECRET["celery"]}, "redis_client_password", "openssl"),
        ("redis", {"redis_extra_users": [{**USER, "password": "short"}]}, "'reports' is weak", "ansible-vault"),
        ("redis", {"redis_extra_users": [{**USER, "name": "celery"}]}, "redis_extra_users", "the role's own"),
        ("redis", {"redis_extra_users": [{**USER, "name": "default"}]}, "redis_extra_users", "which is off"),
        ("redis", {"redis_extra_users": [USER, USER]}, "redis_extra_users", "different names"),
        ("redis", {"redis_db": 16}, "redis_db", "below 'databases'"),
        ("redis", {"redis_tls_port": 6379}, "redis_tls_port", "two different ports"),
        ("redis", {"redis_maxmemory": "8gb"}, "redis_maxmemory", "less than the 4096 MB"),
        ("redis", {"redis_maxmemory": "1mb"}, "redis_maxmemory", "more than 1mb"),
        ("redis", {"redis_maxmemory": "half"}, "redis_maxmemory", "a number with kb, mb or gb"),
        ("redis", {"redis_config": {"maxmemory-policy": "allkeys-lru"}}, "maxmemory-policy", "noeviction"),
        ("redis", {"redis_config": {"PORT": 1}}, "redis_config may not contain port", "redis_port"),
        ("rabbitmq", {"rabbitmq_letters_password": SECRET["admin"]}, "rabbitmq_admin_password", "openssl"),
        ("rabbitmq", {"rabbitmq_letters_password": "short"}, "rabbitmq_letters_password is weak", "openssl"),
        ("rabbitmq", {"rabbitmq_client_user": "worker"}, "rabbitmq_client_user", "different names"),
        ("rabbitmq", {"rabbitmq_client_user": "guest"}, "rabbitmq_client_user", "which is deleted"),
        ("rabbitmq", {"rabbitmq_partitions": 65}, "rabbitmq_partitions", "1 to 64"),
        ("rabbitmq", {"rabbitmq_result_expires": 59}, "rabbitmq_result_expires", "at least 60 seconds"),
        ("rabbitmq", {"rabbitmq_management_port": 5671}, "rabbitmq_management_port", "three different ports"),
        ("rabbitmq", {"rabbitmq_node_name": "rabbit@a.b"}, "rabbitmq_node_name", "rabbit@localhost"),
        ("rabbitmq", {"rabbitmq_vhost": ""}, "rabbitmq_vhost", "such as celery"),
        ("rabbitmq", {"rabbitmq_bind_addresses": ["*"]}, "rabbitmq_bind_addresses", "no address *"),
        ("rabbitmq", {"rabbitmq_plugins": ["rabbitmq_top"]}, "rabbitmq_plugins", "must contain rabbitmq_management"),
        ("rabbitmq", {"rabbitmq_plugins": ["rabbitmq_management", "a b"]}, "rabbitmq_plugins", "names of plugins only"),
        ("rabbitmq", {"rabbitmq_config": {"default_user": "x"}}, "default_user", "README.md"),
    ],
)
def test_broken_rule_has_a_reason(role: str, change: dict[str, Any], variable: str, remedy: str) -> None:
    found = PROBLEMS[role]({**DECLARED[role], **change})
    assert len(found) == 1, found
    assert variable in found[0]
    assert remedy in found[0]


@pytest.mark.parametrize("role", DECLARED)
def test_no_password_is_in_a_sentence(role: str) -> None:
    passwords = {name: "topsecret" for name in DECLARED[role] if name.endswith("_password")}
    found = PROBLEMS[role]({**DECLARED[role], **passwords, "redis_extra_users": [{**USER, "password": "topsecret"}]})
    assert found
    assert "topsecret" not in " ".join(found)

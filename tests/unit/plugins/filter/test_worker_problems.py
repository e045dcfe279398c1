"""The rules across the variables of the worker role: each broken one is a sentence with its remedy."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.filter import worker_problems
from ansible_collections.celeryops.hybrid.plugins.plugin_utils import _worker

problems = worker_problems.FilterModule().filters()["worker_problems"]


@pytest.fixture
def declared(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "app-1.0-py3-none-any.whl").touch()
    return {
        "beat_hosts": ["worker1"],
        "priority_steps": [0, 3, 6, 9],
        "queues": ["celery", "slow"],
        "result_expires": 86400,
        "result_partitions": 16,
        "sandbox": ["PrivateTmp"],
        "setting_variables": {"task_acks_late": "", "task_time_limit": "worker_task_time_limit"},
        "worker_app": "payments",
        "worker_app_requirements": [],
        "worker_app_source": str(tmp_path),
        "worker_app_version": "",
        "worker_broker_transport_options": {},
        "worker_hybrid_requirement": "",
        "worker_instances": [{"name": "default", "queues": ["celery"], "concurrency": 2}],
        "worker_longest_countdown": 600,
        "worker_memory_max": "80%",
        "worker_packages": ["celery[redis]==5.7.0"],
        "worker_pip_environment": {},
        "worker_sandbox_disabled": [],
        "worker_settings": {},
        "worker_drain_timeout": 60,
        "worker_task_routes": {"reports.*": {"queue": "slow"}},
        "worker_task_soft_time_limit": 1740,
        "worker_task_time_limit": 1800,
        "worker_visibility_timeout": 3600,
    }


def test_a_good_declaration_has_none(declared: dict[str, Any]) -> None:
    assert problems(declared) == []


@pytest.mark.parametrize(
    "change",
    [
        {"worker_app": "shop.celery:app"},
        {"worker_app_source": "", "worker_app_requirements": ["payments==1.0"]},
        {"worker_app_source": "git+https://git.example.org/payments.git", "worker_app_version": "v1"},
        {"worker_app_source": "git+ssh://git@git.example.org/payments.git"},
        {"worker_app_requirements": ["shop @ git+ssh://git@git.example.org/shop.git@v1", "a @ https://h/a@1.whl"]},
        {"worker_app_requirements": ["shop @ git+https://git.example.org/shop.git@v1", "--index-url https://h/simple"]},
        {"worker_pip_environment": {"PIP_INDEX_URL": "https://u:p@h/a", "PIP_EXTRA_INDEX_URL": "https://u:p@h:8443/b"}},
        {"worker_instances": [{"name": "g", "queues": ["a"], "pool": "gevent"}], "worker_packages": ["gevent>=24"]},
        {"worker_instances": [{"name": "s", "queues": ["a"], "pool": "solo"}]},
        {"worker_instances": [{"name": "l", "queues": ["a"], "time_limit": 3000, "soft_time_limit": 2900}]},
        {"worker_settings": {"task_default_priority": 6}},
        {"worker_broker_transport_options": {"socket_timeout": 30}},
        {"worker_task_routes": {"x": "slow", "y": {"priority": 3}}},
        {"worker_settings": {"task_compression": "gzip"}},
        {"beat_hosts": []},
    ],
)
def test_good_changes(declared: dict[str, Any], change: dict[str, Any]) -> None:
    assert problems({**declared, **change}) == []


def test_a_wheel_is_an_application(declared: dict[str, Any], tmp_path: Path) -> None:
    assert problems({**declared, "worker_app_source": str(tmp_path / "app-1.0-py3-none-any.whl")}) == []


INSTANCE = {"name": "default", "queues": ["celery"]}


@pytest.mark.parametrize(
    ("change", "variable", "remedy"),
    [
        ({"worker_app": ""}, "worker_app", "name the module"),
        ({"worker_app": "pay-ments"}, "worker_app", "module:attribute"),
        ({"worker_app_source": ""}, "worker_app_source", "worker_app_requirements"),
        ({"worker_app_source": "/nowhere"}, "worker_app_source", "no such directory"),
        ({"worker_app_source": "/nowhere.whl"}, "worker_app_source", "no such file"),
        ({"worker_app_source": "payments"}, "worker_app_source", "absolute"),
        ({"worker_app_source": "/tmp"}, "worker_app_source", "pyproject.toml"),
        ({"worker_app_source": "git+http://h/p.git"}, "worker_app_source", "https://"),
        ({"worker_app_source": "git+https://u:pw@h/p.git"}, "worker_app_source", "deploy key"),
        ({"worker_app_source": "git+https://token@h/p.git"}, "worker_app_source", "~/.netrc"),
        ({"worker_app_source": "git+ssh://u:pw@h/p.git"}, "worker_app_source", "deploy key"),
        ({"worker_app_requirements": ["p @ git+https://tok@h/p.git"]}, "worker_app_requirements", "~/.netrc"),
        ({"worker_app_requirements": ["p @ git+https://${TOKEN}@h/p.git"]}, "worker_app_requirements", "~/.netrc"),
        ({"worker_app_requirements": ["git+ssh://git:pw@h/p.git"]}, "worker_app_requirements", "deploy key"),
        ({"worker_app_requirements": ["--index-url=https://u:p@h/"]}, "worker_app_requirements", "PIP_INDEX_URL"),
        ({"worker_packages": ["p @ https://u:pw@h/p.whl"]}, "worker_packages", "**@h/p.whl"),
        ({"worker_hybrid_requirement": "p @ HTTPS://tok@h/p.whl"}, "worker_hybrid_requirement", "~/.netrc"),
        (
            {"worker_pip_environment": {"PIP_INDEX_URL": "https://u:a@h/", "PIP_EXTRA_INDEX_URL": "https://u:b@h/"}},
            "worker_pip_environment",
            "one that may read both",
        ),
        ({"worker_app_source": "git+https://h/p.git@v1"}, "worker_app_source", "worker_app_version"),
        ({"worker_app_version": "v1"}, "worker_app_version", "remove it"),
        ({"worker_instances": []}, "worker_instances", "at least one"),
        ({"worker_instances": [INSTANCE, INSTANCE]}, "worker_instances", "a name of its own"),
        ({"worker_instances": [{**INSTANCE, "name": "Big One"}]}, "worker_instances", "lower-case"),
        ({"worker_instances": [{**INSTANCE, "queues": []}]}, "worker_instances", "at least one"),
        ({"worker_instances": [{**INSTANCE, "concurrency": 0}]}, "worker_instances", "at least 1"),
        ({"worker_instances": [{**INSTANCE, "pool": "solo", "concurrency": 2}]}, "worker_instances", "another pool"),
        ({"worker_instances": [{**INSTANCE, "pool": "gevent"}]}, "worker_instances", "worker_app_requirements"),
        ({"worker_instances": [{**INSTANCE, "options": ["a\nb"]}]}, "worker_instances", "line break"),
        ({"worker_instances": [{**INSTANCE, "time_limit": 3600}]}, "worker_instances", "worker_visibility_timeout"),
        ({"worker_instances": [{**INSTANCE, "time_limit": 60}]}, "worker_instances", "soft limit"),
        ({"worker_task_time_limit": 7200}, "worker_task_time_limit", "worker_visibility_timeout"),
        ({"worker_task_soft_time_limit": 1800}, "worker_task_soft_time_limit", "lower one"),
        ({"worker_task_soft_time_limit": 0}, "worker_task_soft_time_limit", "at least one second"),
        ({"worker_longest_countdown": 3600}, "worker_longest_countdown", "lower the countdown"),
        ({"queues": ["celery", "slow", "a:b"]}, "worker_queues", "letters"),
        ({"queues": ["celery", "slow", "unacked"]}, "worker_queues", "Celery's own names"),
        ({"priority_steps": [3, 6]}, "worker_broker_transport_options", "[0, 3, 6, 9]"),
        ({"priority_steps": [0, 12]}, "worker_broker_transport_options", "at most 9"),
        ({"worker_settings": {"task_default_priority": 10}}, "task_default_priority", "0 (first)"),
        ({"worker_task_routes": {"x": {"queue": "slwo"}}}, "worker_task_routes", "worker_instances"),
        ({"worker_task_routes": {"x": "slwo"}}, "worker_task_routes", "worker_queues"),
        ({"beat_hosts": ["a", "b"]}, "worker_beat_enabled", "one host"),
        ({"result_partitions": 0}, "worker_result_transport_options", "rabbitmq_partitions"),
        ({"result_expires": 5}, "rabbitmq_result_expires", "60 seconds"),
        ({"worker_settings": {"Task_Compression": 1}}, "worker_settings", "lower case"),
        ({"worker_settings": {"broker_url": "x"}}, "worker_settings", "worker_broker_url"),
        ({"worker_settings": {"result_backend": "x"}}, "worker_settings", "worker_result_backend"),
        ({"worker_settings": {"task_acks_late": False}}, "worker_settings", "fixed"),
        ({"worker_settings": {"task_time_limit": 5}}, "worker_settings", "worker_task_time_limit"),
        ({"worker_broker_transport_options": {"visibility_timeout": 60}}, "may not", "worker_visibility_timeout"),
        ({"worker_broker_transport_options": {"sep": ":"}}, "worker_broker_transport_options", "separator"),
        ({"worker_memory_max": "4 GB"}, "worker_memory_max", "80%"),
        ({"worker_sandbox_disabled": ["PrivateTemp"]}, "worker_sandbox_disabled", "PrivateTmp"),
    ],
)
def test_a_broken_rule_has_a_reason(
    declared: dict[str, Any], change: dict[str, Any], variable: str, remedy: str
) -> None:
    found = problems({**declared, **change})
    assert len(found) == 1, found
    assert variable in found[0]
    assert remedy in found[0]


def test_a_password_in_the_url_of_the_repository_is_not_repeated(declared: dict[str, Any]) -> None:
    found = problems({**declared, "worker_app_source": "git+https://u:topsecret@h/p.git"})
    assert "topsecret" not in " ".join(found)


def test_a_token_in_a_requirement_is_not_repeated(declared: dict[str, Any]) -> None:
    requirements = ["p @ git+https://topsecret@h/p.git", "--index-url https://u:topsecret@h/simple"]
    found = problems({**declared, "worker_app_requirements": requirements})
    assert len(found) == 2
    assert "topsecret" not in " ".join(found)


def test_urls_that_may_hold_a_login_are_those_that_the_installation_takes_apart() -> None:
    path = Path(__file__).parents[4] / "celery-hybrid/src/celery_hybrid/release/installation.py"
    assert runpy.run_path(str(path))["URLS"] == _worker.INDEXES


def test_all_problems_are_told_at_once(declared: dict[str, Any]) -> None:
    assert len(problems({**declared, "worker_app": "", "worker_instances": [], "result_expires": 1})) == 3

"""What a role declares of its variables, and what it sets, must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path.parents[1] for path in (Path(__file__).parents[3] / "roles").glob("*/defaults/main.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def options(role: Path) -> dict[str, Any]:
    return load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]


@pytest.fixture
def defaults(role: Path) -> dict[str, Any]:
    return load(role / "defaults" / "main.yml")


def test_roles_are_found() -> None:
    assert {role.name for role in ROLES} >= {"redis", "rabbitmq", "worker"}


def test_every_default_is_typed_and_nothing_else(options: dict[str, Any], defaults: dict[str, Any]) -> None:
    optional = {name for name, spec in options.items() if not spec.get("required")}
    assert optional == set(defaults)


def test_declared_defaults_are_those_that_are_set(options: dict[str, Any], defaults: dict[str, Any]) -> None:
    computed = {name for name, value in defaults.items() if "{{" in str(value)}
    declared = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert declared == {name: value for name, value in defaults.items() if name not in computed}


def test_variables_carry_the_name_of_the_role(role: Path, defaults: dict[str, Any]) -> None:
    assert [name for name in defaults if not name.startswith(f"{role.name}_")] == []


def test_secrets_have_no_default_and_are_not_logged(options: dict[str, Any], defaults: dict[str, Any]) -> None:
    secrets = [name for name in options if name.endswith("_password")]
    for name in secrets:
        assert options[name].get("no_log") is True
        assert "lookup('ansible.builtin.env'" in str(defaults[name]) or "{{" in str(defaults[name])


def test_every_option_is_described(options: dict[str, Any]) -> None:
    def undescribed(options: dict[str, Any], prefix: str = "") -> list[str]:
        found = [prefix + name for name, spec in options.items() if not spec.get("description") or not spec.get("type")]
        for name, spec in options.items():
            found += undescribed(spec.get("options", {}), f"{prefix}{name}.")
        return found

    assert undescribed(options) == []


def test_tasks_are_a_contents_page_in_the_house_order(role: Path) -> None:
    order = ["preflight", "install", "users", "configure", "tls", "service", "topology", "remember"]
    tasks = load(role / "tasks" / "main.yml")
    files = [(task.get("ansible.builtin.include_tasks") or task.get("ansible.builtin.import_tasks")) for task in tasks]
    names = [Path(file["file"] if isinstance(file, dict) else file).stem for file in files]
    assert [name for name in order if name in names] == names
    assert {"preflight", "install", "configure", "service"} <= set(names)

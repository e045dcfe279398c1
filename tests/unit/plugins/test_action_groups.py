"""Groups of modules for module_defaults."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
GROUPS = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]


@pytest.mark.parametrize(
    ("group", "arguments"), [("rabbitmq", "_rabbitmq_api.api_arguments"), ("redis", "_redis_client.client_arguments")]
)
def test_group_has_every_module_that_logs_in(group, arguments):
    function = arguments.partition(".")[2]
    modules = {
        path.stem for path in (ROOT / "plugins" / "modules").glob(f"{group}_*.py") if function in path.read_text()
    }
    assert set(GROUPS[group]) == modules


@pytest.mark.parametrize("name", [name for group in GROUPS.values() for name in group])
def test_modules_of_groups_exist(name):
    importlib.import_module(f"ansible_collections.celeryops.hybrid.plugins.modules.{name}")

"""What differs between distributions is in one file for each: the roles ask for nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROLES = sorted(path.parents[1] for path in (Path(__file__).parents[3] / "roles").glob("*/defaults/main.yml"))


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_files_of_all_distributions_set_the_same_names(role: Path) -> None:
    names = [set(yaml.safe_load(path.read_text())) for path in role.glob("vars/[A-Z]*.yml")]
    assert names
    assert all(each == names[0] for each in names)
    assert f"__{role.name}_releases" in names[0]


def test_no_other_file_decides_by_the_release(role: Path) -> None:
    others = [
        path for part in ("tasks", "handlers", "templates") for path in role.glob(f"{part}/**/*") if path.is_file()
    ]
    for path in (*others, role / "vars" / "main.yml", role / "defaults" / "main.yml"):
        assert not re.search(r"distribution(_major_version)?'\] *(==|!=|is version)", path.read_text()), path

"""A drift check runs in check mode without --check, which 'ansible_check_mode' does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

ROLES = Path(__file__).resolve().parents[3] / "roles"
FILES = [path for part in ("tasks", "handlers") for path in sorted(ROLES.glob(f"*/{part}/*.yml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_roles_ask_their_own_variable(path):
    role = path.parts[-3]
    assert "ansible_check_mode" not in path.read_text(), f"use __{role}_check_mode (roles/{role}/vars/main.yml)"

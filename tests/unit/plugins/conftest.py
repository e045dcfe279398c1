"""What stands in for systemd where there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Reads one simple assignment a line; how systemd reads its files is tested on hosts.
SYSTEMD_RUN = f"""#!{sys.executable}
import json, os, subprocess, sys
place = sys.argv.index("--")
options, command = sys.argv[1:place], sys.argv[place + 1:]
environment = {{"PATH": "/usr/bin:/bin"}}
seconds = None
for option in options:
    name, _, value = option.removeprefix("--property=").removeprefix("--").partition("=")
    if name == "EnvironmentFile":
        with open(value) as lines:
            environment.update(line.rstrip("\\n").split("=", 1) for line in lines)
    elif name == "setenv":
        environment.update([value.split("=", 1)])
    elif name == "RuntimeMaxSec":
        seconds = float(value)
with open(os.environ["SYSTEMD_RUN_OPTIONS"], "w") as file:
    json.dump(options, file)
try:
    sys.exit(subprocess.run(command, env=environment, cwd="/", timeout=seconds).returncode)
except subprocess.TimeoutExpired:
    sys.exit(1)
"""


@pytest.fixture
def systemd_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program of the test in the place of systemd-run; return the file that holds its last options."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    program = folder / "systemd-run"
    program.write_text(SYSTEMD_RUN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SYSTEMD_RUN_OPTIONS", str(folder / "options"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder / "options"

#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try the collection with the oldest and the newest ansible-core that it promises.

With each the unit tests run, which render the roles' templates, and the playbooks are parsed. The oldest is what
``meta/runtime.yml`` requires. One for which this machine has no Python is left out, with a line that says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "cores"
#: Versions of ansible-core, and of the Pythons that can run each on the control node, the preferred one first.
CORES = {
    "2.19.8": ("3.11", "3.12", "3.13"),
    "2.21.5": ("3.12", "3.13", "3.14"),
}
#: What the tests need beside ansible-core, as requirements-dev.txt pins it.
NEEDED = ("celery", "fakeredis", "pytest")


def pins() -> list[str]:
    """Return the requirements of the tests."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    return [line for line in lines if re.match(rf"({'|'.join(NEEDED)})\b(?!-)", line)]


def python(versions: tuple[str, ...]) -> str | None:
    """Return an interpreter of one of some versions; pyenv's count, whatever it has activated."""
    for version in versions:
        installed = sorted(
            Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
        )
        for candidate in filter(None, (shutil.which(f"python{version}"), *map(str, installed))):
            code = (
                f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
            )
            if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
                return candidate
    return None


def environment(core: str, interpreter: str) -> Path:
    """Return the directory of a virtual environment with a version of ansible-core, made if it is not there."""
    folder = CACHE / core
    complete = folder / "complete"
    wanted = "\n".join([f"ansible-core=={core}", *pins()])
    if not complete.exists() or complete.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        pip = (folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
        subprocess.run([*pip, *wanted.splitlines()], check=True)
        complete.write_text(wanted)
    return folder


def checks(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each check, and its command."""
    yield (
        "unit tests",
        [
            str(folder / "bin" / "pytest"),
            "-p",
            "no:cacheprovider",
            # Alerting rules do not depend on ansible-core, and promtool is slow.
            "-k",
            "not promtool",
            "tests/unit/plugins",
            "tests/unit/roles",
            "tests/unit/playbooks",
        ],
    )
    playbooks = [str(path) for path in sorted((ROOT / "playbooks").glob("*.yml"))]
    inventory = str(ROOT / "molecule" / "inventory" / "stack_on_debian12.yml")
    syntax = [str(folder / "bin" / "ansible-playbook"), "--syntax-check", "-i", inventory]
    # It needs a collection that is not part of ansible-core.
    yield "syntax of the playbooks", [*syntax, *(path for path in playbooks if "certificates" not in path)]


def run(core: str, interpreter: str) -> bool:
    """Run the checks with one version; return whether all of them passed."""
    began = time.monotonic()
    folder = environment(core, interpreter)
    settings = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    failed = []
    for name, command in checks(folder):
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr)
    verdict = f"FAILED: {', '.join(failed)}" if failed else "passed"
    print(f"-- ansible-core {core}: {verdict} after {time.monotonic() - began:.0f} s", flush=True)
    return not failed


def main() -> int:
    """Run everything for which there is a Python; one at least."""
    found = {core: python(versions) for core, versions in CORES.items()}
    for core in (core for core, interpreter in found.items() if not interpreter):
        print(f"-- ansible-core {core}: left out, no Python {', '.join(CORES[core])} is installed", flush=True)
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda pair: run(*pair), ((core, path) for core, path in found.items() if path)))
    print(f"{sum(outcomes)} passed, {outcomes.count(False)} failed, {len(CORES) - len(outcomes)} left out")
    return 0 if outcomes and all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

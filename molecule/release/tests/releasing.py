"""The hosts of this scenario, the playbooks as ops run them, and versions of the application."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import yaml

from stack import INVENTORY, ROOT, STATE

HERE = Path(__file__).resolve().parents[1]
APPLICATION = HERE / "application"
VERSIONS = ROOT / ".cache" / "release"
NOTES = "/run/ledger.notes"
UNIT = "celery-worker@default"
ADDRESSES = {
    name: values["ansible_host"]
    for name, values in yaml.safe_load(INVENTORY.read_text())["all"]["children"]["worker"]["hosts"].items()
}


def shell(host, script, stdin=""):
    """Run a script as root."""
    quoted = "'" + script.replace("'", "'\\''") + "'"
    return subprocess.run(
        ["ssh", "-F", str(STATE / "ssh_config"), ADDRESSES[host], f"sudo sh -c {quoted}"],
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def as_worker(arguments):
    """Return a command for load.py with the workers' Python, user, settings and secrets."""
    return (
        "systemd-run --quiet --collect --pipe --wait "
        "--property=User=celery --property=EnvironmentFile=/etc/celery/celery.env "
        "--property=RuntimeDirectory=ledger --property=RuntimeDirectoryPreserve=yes "
        f"--setenv=CELERY_CONFIG_MODULE=celeryconfig --setenv=PYTHONPATH=/etc/celery -- {arguments}"
    )


def release(*arguments, playbook="release"):
    """Run a playbook, as ops do."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_SSH_COMMON_ARGS": f"-F {STATE / 'ssh_config'}",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        ["ansible-playbook", "-i", str(INVENTORY), f"celeryops.hybrid.{playbook}", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=1200,
    )
    done.text = " ".join((done.stdout + done.stderr).split())
    return done


def version(number, *changes):
    """Make a version of the application; each change replaces one text by another in its source."""
    folder = VERSIONS / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(APPLICATION, folder)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "1"', f'version = "{number}"'))
    source = folder / "src" / "ledger" / "__init__.py"
    text = source.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    source.write_text(text)
    return f"worker_app_source={folder}"


def wheel(number):
    """Make a wheel of the application."""
    path = VERSIONS / f"ledger-{number}-py3-none-any.whl"
    info = f"ledger-{number}.dist-info"
    files = ["ledger/__init__.py", *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD"))]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(files[0], (APPLICATION / "src" / "ledger" / "__init__.py").read_text())
        archive.writestr(files[1], f"Metadata-Version: 2.1\nName: ledger\nVersion: {number}\n")
        archive.writestr(files[2], "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(files[3], "".join(f"{name},,\n" for name in files))
    return f"worker_app_source={path}"


def started(host):
    return shell(host, f"systemctl show {UNIT} --property=ActiveEnterTimestampMonotonic --value").stdout.strip()


def serves(host):
    return shell(host, f"systemctl is-active {UNIT}").stdout.strip() == "active"


def status(host):
    return shell(host, f"systemctl show {UNIT} --property=StatusText --value").stdout


def served(host):
    """Return the version that a host has."""
    return json.loads(shell(host, "cat /opt/celery/history.json").stdout or '[{"version": "ledger 1"}]')[-1]["version"]

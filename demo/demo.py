#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: the whole stack on throw-away hosts, deployed as ops would deploy it.

``make demo`` runs it after the set-up. Everything it makes is in ``.demo`` and in the containers of
the project ``demo``; ``make demo-down`` removes both.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
INVENTORY = DEMO / "inventory.yml"
SSH_CONFIG = ROOT / ".cache" / "hosts" / "ssh_config"
TEMPLATE = Path(__file__).with_name("inventory.yml.template")
SUBNET = "10.213.10"
MOST_WORKERS = 9


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


def program(name: str) -> str:
    """Return the path of a program of the project's virtual environment."""
    return str(ROOT / ".venv" / "bin" / name)


def write_inventory(workers: int, image: str) -> None:
    """Write ``.demo/inventory.yml``, the inventory that any Ansible command can use."""
    DEMO.mkdir(mode=0o700, exist_ok=True)
    lines = [f"        worker{n}: {{ansible_host: {SUBNET}.{20 + n}}}" for n in range(1, workers + 1)]
    text = TEMPLATE.read_text()
    for name, value in {
        "@ROOT@": str(ROOT),
        "@IMAGE@": image,
        "@SUBNET@": SUBNET,
        "@WORKERS@": "\n".join(lines),
    }.items():
        text = text.replace(name, value)
    INVENTORY.write_text(text)


def addresses() -> dict[str, str]:
    """Return ``host: address`` of the demo's inventory."""
    if not INVENTORY.exists():
        raise DemoError("There is no demo: run 'make demo' first.")
    return dict(re.findall(r"^ +(\w+): \{ansible_host: ([\d.]+)\}", INVENTORY.read_text(), re.MULTILINE))


def testhosts(*arguments: str) -> None:
    """Run the tool that makes the hosts."""
    done = subprocess.run([program("python"), str(ROOT / "tests" / "hosts" / "testhosts.py"), *arguments], check=False)
    if done.returncode:
        raise DemoError("The hosts could not be created; the line above says why.")


def playbook(name: str, *arguments: str) -> list[str]:
    """Run a playbook of the collection; print a line a play, keep the whole output in ``.demo``.

    Returns:
        The lines of the output.

    Raises:
        DemoError: the playbook failed; what it said last is printed.
    """
    log = DEMO / f"{name}.log"
    lines: list[str] = []
    command = [program("ansible-playbook"), "-i", str(INVENTORY), f"celeryops.hybrid.{name}", *arguments]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    play, started = "", time.monotonic()
    with (
        log.open("w") as copy,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        for line in process.stdout or ():
            copy.write(line)
            lines.append(line.rstrip("\n"))
            if match := re.match(r"(?:PLAY \[(.+?)\] \*|PLAY RECAP)", line):
                if play:
                    print(f" {time.monotonic() - started:5.0f} s", flush=True)
                play, started = match[1] or "", time.monotonic()
                if play:
                    print(f"  {play:<40}", end="", flush=True)
    if process.returncode:
        print()
        start = next(
            (n for n, line in enumerate(lines) if re.match(r"(\[ERROR\]|fatal:)", line)), max(0, len(lines) - 40)
        )
        print("\n".join(lines[start:]))
        raise DemoError(f"celeryops.hybrid.{name} failed; all of its output is in {log.relative_to(ROOT)}.")
    return lines


def recap(lines: Sequence[str]) -> list[str]:
    """Return the recap of a playbook's output, a line a host."""
    try:
        start = next(n for n, line in enumerate(lines) if line.startswith("PLAY RECAP"))
    except StopIteration:
        return []
    found = (re.match(r"(\S+)\s+: ok=(\d+)\s+changed=(\d+)", line) for line in lines[start:])
    return [f"{m[1]:<12} changed={m[3]:<3} ok={m[2]}" for m in found if m]


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


def up(workers: int, image: str) -> None:
    """Boot the hosts, deploy, verify, and say what was done."""
    started = time.monotonic()
    heading("Hosts")
    write_inventory(workers, image)
    testhosts("up", "-i", str(INVENTORY))
    heading("Certificates: ansible-playbook -i .demo/inventory.yml celeryops.hybrid.certificates")
    playbook("certificates")
    heading("Deploy: ansible-playbook -i .demo/inventory.yml celeryops.hybrid.site")
    deployed = recap(playbook("site"))
    print("\n".join(f"  {line}" for line in deployed))
    heading("Verify: ansible-playbook -i .demo/inventory.yml celeryops.hybrid.verify")
    verified = playbook("verify")
    print("\n".join(f"  {line}" for line in checks(verified)))
    heading(f"Done in {time.monotonic() - started:.0f} s. What runs where:")
    for host, address in addresses().items():
        what = {
            "broker": "Redis: takes the tasks (TLS, port 6380)",
            "results": "RabbitMQ: keeps the results (TLS, port 5671)",
        }
        print(f"  {host:<10} {address:<14} {what.get(host.rstrip('0123456789'), 'Celery workers and the application')}")
    print(
        """
Look around:
  make demo-ssh HOST=worker1            a shell on a host; there, for example:
      sudo systemctl status 'celery-worker@*'
      sudo journalctl -fu celery-worker@default
      sudo celery result-store          the way to RabbitMQ, and what waits for it
  .venv/bin/ansible-playbook -i .demo/inventory.yml celeryops.hybrid.site --check --diff
  .venv/bin/ansible-playbook -i .demo/inventory.yml celeryops.hybrid.verify
  make demo                             again: repairs what differs, changes nothing else
  DEMO_WORKERS=2 make demo              one more worker host
  make demo-down                        removes every trace"""
    )


def checks(lines: Sequence[str]) -> list[str]:
    """Return the table of checks that the verify playbook printed."""
    return [line.strip() for line in lines if re.match(r"\s+(ok|FAILED)\s", line)]


def down() -> None:
    """Remove the hosts, their network, their images and the demo's files."""
    if INVENTORY.exists():
        testhosts("down", "-i", str(INVENTORY))
    testhosts("remove-images")
    shutil.rmtree(DEMO, ignore_errors=True)
    print("  .demo: removed")


def ssh(host: str) -> int:
    """Open a shell on a host of the demo."""
    known = addresses()
    if host not in known:
        raise DemoError(f"There is no host {host!r} in the demo; there are {', '.join(known)}.")
    return subprocess.run(["ssh", "-F", str(SSH_CONFIG), known[host]], check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="The demo of celeryops.hybrid.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="boot, deploy, verify")
    start.add_argument("--workers", default="1", help="number of worker hosts")
    start.add_argument("--image", default="debian12", choices=["debian12", "debian13"])
    commands.add_parser("down", help="remove every trace")
    commands.add_parser("ssh", help="open a shell on a host").add_argument("host")
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            if not (options.workers.isdecimal() and 1 <= int(options.workers) <= MOST_WORKERS):
                raise DemoError(f"DEMO_WORKERS is {options.workers!r}: give a number from 1 to {MOST_WORKERS}.")
            up(int(options.workers), options.image)
        elif options.command == "down":
            down()
        else:
            return ssh(options.host)
    except DemoError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

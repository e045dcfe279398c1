# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the suites share that load servers or break them: hosts, processes, the packet filter, a small disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ROOT / "tests" / "inventory"
STATE = ROOT / ".cache" / "hosts"
PACKAGE = ROOT / "celery-hybrid"
BIN = ROOT / ".venv" / "bin"
PINS = ("celery[redis]==5.7.0", "kombu==5.7.0", "redis==8.1.0", "amqp==5.4.2")
AMQP_PORT, REDIS_PORT = "5672", "6379"


class Servers:
    """The host with Redis and RabbitMQ."""

    def __init__(self, address: str) -> None:
        self.address = address

    def shell(self, script: str, stdin: str = "") -> str:
        """Run a script as root and return its output; SSH would split its words again."""
        done = subprocess.run(
            ["ssh", "-F", STATE / "ssh_config", self.address, f"sudo sh -c {shlex.quote(script)}"],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{script}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def versions(self) -> str:
        """Return the versions of what runs there."""
        system = self.shell(". /etc/os-release; echo $PRETTY_NAME")
        redis = re.search(r"v=(\S+)", self.shell("redis-server --version"))
        return f"{system}, RabbitMQ {self.shell('rabbitmqctl version')}, Redis {redis[1] if redis else '?'}"

    def environment(self, user: str, broker_user: str = "celery", database: int = 0) -> dict[str, str]:
        """Return where processes with the rights of a user find the servers; passwords are not for arguments."""
        password = secret(f"rabbitmq_{user}")
        broker_password = secret("redis" if broker_user == "celery" else f"redis_{broker_user}")
        return {
            "CHAOS_BROKER": f"redis://{broker_user}:{broker_password}@{self.address}:{REDIS_PORT}/{database}",
            "CHAOS_RESULTS": f"amqp://{user}:{password}@{self.address}:{AMQP_PORT}/celery",
        }


class Filter:
    """The packet filter of this machine, as far as it concerns servers on the host.

    Args:
        address: of the host.
        comment: marks our rules; nothing without it is touched.
        ports: of the servers.
    """

    def __init__(self, address: str, comment: str, *ports: str) -> None:
        mark = ("-m", "comment", "--comment", comment, "-j", "DROP")
        self._out = [("OUTPUT", "-p", "tcp", "-d", address, "--dport", port, *mark) for port in ports]
        self._in = [("INPUT", "-p", "tcp", "-s", address, "--sport", port, *mark) for port in ports]

    @contextlib.contextmanager
    def dropping(self, *, both: bool) -> Iterator[None]:
        """Drop what comes from the servers; with ``both`` also what goes there."""
        try:
            for rule in (*(self._out if both else ()), *self._in):
                root("iptables", "-w", "-I", *rule)
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """Take our rules away, also those that an earlier run has left."""
        for rule in (*self._out, *self._in):
            while root("iptables", "-w", "-D", *rule, check=False) == 0:
                pass


class Worker:
    """A worker that is started again when it ends, as systemd does.

    Args:
        command: the program and its arguments.
        environment: of its processes.
        log: file that they write to.
        folder: that it runs in.
    """

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str], log: Path, folder: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def ensure(self) -> None:
        """Start it unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()  # children that a main process has left
        self.starts += 1
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Number of the main process; 0 when there is none."""
        return 0 if self._process is None or self._process.poll() is not None else self._process.pid

    def children(self) -> list[int]:
        """Return the processes of its pool."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def kill(self) -> None:
        """End the main process and its children, all at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                # Its own group, so nobody else is in it.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it as systemd does."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self.kill()


class Client:
    """A process with the rights of a client; its answer is one line of JSON.

    Args:
        program: the interpreter and the module.
        environment: of the process.
        log: file for what it complains about.
        arguments: what it shall do, and values for it.
    """

    def __init__(self, program: Sequence[str | Path], environment: dict[str, str], log: Path, *arguments: Any) -> None:
        self._log = log
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [*program, arguments[0], *map(json.dumps, arguments[1:])],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def line(self) -> str:
        """Wait for a line of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def announce_end(self) -> None:
        """Let it come to its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def running(self) -> bool:
        """Return whether it is still running."""
        return self._process.poll() is None

    def answer(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait until it ends; return its answer and what it said before."""
        assert self._process.stdout is not None
        lines = [json.loads(line) for line in self._process.stdout if line.strip()]
        if self._process.wait() or not lines:
            raise SystemExit(f"A client has failed; see {self._log}.")
        return lines[-1], lines[:-1]

    def close(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


def lines_of(path: Path) -> list[list[str]]:
    """Return the words of each line of a file that the processes append to."""
    # The last one may be half written.
    return [line.split() for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def say(text: str) -> None:
    """Print a progress line at once, not into the table."""
    print(f"  {text}", file=sys.stderr, flush=True)


def root(*command: str, check: bool = True) -> int:
    """Run a command of this machine as root and return its exit status."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    done = subprocess.run([*sudo, *command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.returncode


def run(*command: str | Path, output: Any = None) -> None:
    """Run a command in the checkout; its output is not part of the table."""
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_DISPLAY_OK_HOSTS": "false"}
    subprocess.run([str(part) for part in command], cwd=ROOT, env=settings, check=True, stdout=output or sys.stderr)


@contextlib.contextmanager
def host(inventory: Path, log: Path, *, keep: bool = False) -> Iterator[None]:
    """Boot a host, set it up, and remove it in the end unless it is kept, whatever happens."""
    testhosts = (BIN / "python", ROOT / "tests" / "hosts" / "testhosts.py")
    try:
        run(*testhosts, "up", "-i", inventory)
        say("the roles set it up")
        with log.open("w") as output:
            run(BIN / "ansible-playbook", "-i", inventory, "celeryops.hybrid.site", output=output)
        yield
    finally:
        if not keep:
            run(*testhosts, "down", "-i", inventory)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system that is easily filled."""
    path.mkdir(parents=True, exist_ok=True)
    while root("umount", str(path), check=False) == 0:
        pass  # of an earlier run
    mode = f"size=20m,mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    root("mount", "-t", "tmpfs", "-o", mode, "tmpfs", str(path))
    try:
        yield
    finally:
        root("umount", str(path))


def venv(path: Path, *requirements: str, package: Path | None = None) -> Path:
    """Return a virtual environment with the package, if there is one, made again when anything has changed."""
    files = sorted((*package.rglob("*.py"), *package.rglob("*.json"))) if package is not None else []
    wanted = hashlib.sha256(repr((sys.version, requirements, [file.read_bytes() for file in files])).encode())
    stamp = path / "stamp"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return path
    say(f"{path.relative_to(ROOT)}: installing")
    install = (path / "bin" / "pip", "install", "-qq", "--disable-pip-version-check")
    run(sys.executable, "-m", "venv", "--clear", path)
    run(*install, *requirements)
    if package is not None:
        # A copy, because the build leaves its own files behind.
        copy = path / "package"
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests"))
        run(*install, "--no-deps", copy)
    stamp.write_text(wanted.hexdigest())
    return path


def secret(name: str) -> str:
    """Return a secret of the test hosts, fit for a URL."""
    return quote((STATE / "secrets" / name).read_text().strip(), safe="")


def end_in_order(limit: int) -> None:
    """Clean up when a signal ends this, and end it after so many seconds, whatever hangs."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(f"Ended by signal {number}." if number != signal.SIGALRM else f"It took more than {limit} s.")

    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(name, end)
    signal.alarm(limit)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its head, in Markdown that is aligned for people."""
    head, *rows = cells
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)

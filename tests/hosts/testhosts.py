#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw-away hosts for the demo and the tests.

A host is a container that behaves like a virtual machine: systemd as PID 1, an SSH server, a fixed
address, packages from Debian. The wanted hosts are those of an Ansible inventory, whose variables say:

``ansible_host``        the address, inside ``test_host_subnet``
``test_host_image``     ``debian12`` or ``debian13``
``test_host_project``   the name that the hosts of one inventory share
``test_host_subnet``    the network of the project, in CIDR notation

Standard library only, because it runs before anything else is installed. Containers, networks and
images carry a label of this project and of this checkout; nothing else is ever touched.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import ipaddress
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".cache" / "hosts"
KEY = STATE / "id_ed25519"
KNOWN_HOSTS = STATE / "known_hosts"
SSH_CONFIG = STATE / "ssh_config"
LOCAL_CAS = Path("/usr/local/share/ca-certificates")

LABEL = "celeryops.hybrid.testhost"
LABEL_CHECKOUT = f"{LABEL}.checkout"
# Environment: hosts that an interrupted run of another checkout has left are removed.
TAKE_OVER = "TEST_HOSTS_TAKE_OVER"
IMAGE_REPOSITORY = "localhost/celeryops-testhost"
SUITES = {"debian12": "bookworm", "debian13": "trixie"}
# What a Debian cloud image has, and no more: the roles must bring the rest themselves.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)
# Ops do not log in as root: a user with sudo, as on a cloud image.
USER = "ops"
BOOT_SECONDS = 60
CAP_SYS_RESOURCE = 24


class TestHostsError(Exception):
    """The hosts cannot be made; the message says what is missing and what to do."""


@dataclasses.dataclass(frozen=True)
class Host:
    """One wanted host, as the inventory describes it."""

    name: str
    address: str
    image: str
    project: str
    subnet: str

    @property
    def container(self) -> str:
        """Name of the container; the project keeps equal host names apart."""
        return f"{self.project}-{self.name}"

    @property
    def network(self) -> str:
        """Name of the project's network."""
        return f"celeryops-{self.project}"


# --- the machine ---------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a progress line at once."""
    print(f"  {text}", flush=True)


def privileged(command: Sequence[str]) -> list[str]:
    """Return the command as root runs it: hosts with own addresses need a rootful runtime."""
    if os.geteuid() == 0:
        return list(command)
    return ["sudo", f"CONTAINERS_CONF={STATE / 'containers.conf'}", *command]


def run(command: Sequence[str], *, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command and return it; on failure raise :exc:`TestHostsError` with its last words."""
    environment = {**os.environ, "CONTAINERS_CONF": str(STATE / "containers.conf")}
    try:
        # Not in the checkout: what watches over a container keeps its folder open, and does not count as work.
        raw = subprocess.run(
            privileged(command), input=stdin, capture_output=True, check=False, env=environment, cwd="/"
        )
    except FileNotFoundError as exc:
        raise TestHostsError(f"'{exc.filename}' is not installed: run 'make system-packages'.") from exc
    done = subprocess.CompletedProcess(raw.args, raw.returncode, raw.stdout.decode(), raw.stderr.decode())
    if check and done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise TestHostsError(f"'{' '.join(command[:3])} …' failed: {words[-1] if words else 'no output'}")
    return done


def has_capability(number: int, status: str) -> bool:
    """Tell from the text of ``/proc/self/status`` whether a capability is effective."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def container_configuration(
    *, unified_cgroups: bool, may_raise_limits: bool, hard_files: int, hard_processes: int
) -> str:
    """Return a ``containers.conf`` for this machine: empty where the defaults of podman work.

    crun refuses the hybrid cgroup hierarchy, runc takes it; and a runtime that may not raise limits
    must not be asked for more than the caller has.
    """
    text = ""
    if not unified_cgroups:
        text += '[engine]\nruntime = "runc"\n'
    if not may_raise_limits:
        text += (
            "[containers]\ndefault_ulimits = "
            f'["nofile={hard_files}:{hard_files}", "nproc={hard_processes}:{hard_processes}"]\n'
        )
    return text


def prepare_machine() -> None:
    """Check what the machine offers and write the state that all hosts share.

    Raises:
        TestHostsError: a program is missing.
    """
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    needed = ["podman", "mmdebstrap", "ssh-keygen", *([] if unified else ["runc"])]
    missing = [program for program in needed if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        raise TestHostsError(f"Missing on this machine: {', '.join(missing)}. Run 'make system-packages'.")
    STATE.mkdir(parents=True, exist_ok=True)
    # podman caps its own processes at pid_max, and a container cannot have more than podman.
    most_processes = int(Path("/proc/sys/kernel/pid_max").read_text())
    hard_processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    (STATE / "containers.conf").write_text(
        container_configuration(
            unified_cgroups=unified,
            may_raise_limits=os.geteuid() != 0
            or has_capability(CAP_SYS_RESOURCE, Path("/proc/self/status").read_text()),
            hard_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            hard_processes=most_processes if hard_processes < 0 else min(hard_processes, most_processes),
        )
    )
    # For the sockets that SSH shares; a fresh machine has no such folder.
    (Path.home() / ".ssh").mkdir(mode=0o700, exist_ok=True)
    SSH_CONFIG.write_text(
        f"""Host *
  User {USER}
  IdentityFile {KEY}
  IdentitiesOnly yes
  UserKnownHostsFile {KNOWN_HOSTS}
  StrictHostKeyChecking yes
  ConnectTimeout 5
  ServerAliveInterval 5
  ControlMaster auto
  ControlPersist 60s
  ControlPath ~/.ssh/celeryops-%C
"""
    )
    with lock("key"):
        if not KEY.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "celeryops test hosts", "-f", str(KEY)],
                check=True,
            )


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock of this checkout: scenarios may start side by side."""
    with (STATE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- the inventory -------------------------------------------------------------------------------


def read_inventory(path: Path) -> list[Host]:
    """Return the hosts of an Ansible inventory.

    Raises:
        TestHostsError: a host lacks a variable, or its address is not inside the subnet.
    """
    program = Path(sys.executable).parent / "ansible-inventory"
    command = [str(program) if program.exists() else "ansible-inventory", "-i", str(path), "--list"]
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=False)
    except FileNotFoundError as exc:
        raise TestHostsError("'ansible-inventory' is not installed: run 'make venv'.") from exc
    if done.returncode:
        raise TestHostsError(f"{path}: {done.stderr.strip().splitlines()[-1]}")
    hosts = [host_from_variables(name, v) for name, v in json.loads(done.stdout)["_meta"]["hostvars"].items()]
    if not hosts:
        raise TestHostsError(f"{path}: the inventory names no host.")
    return hosts


def host_from_variables(name: str, variables: dict[str, str]) -> Host:
    """Return the wanted host that an inventory's variables describe, checked."""
    needed = ("ansible_host", "test_host_image", "test_host_project", "test_host_subnet")
    missing = [variable for variable in needed if not variables.get(variable)]
    if missing:
        raise TestHostsError(f"Host {name}: the inventory sets no {', '.join(missing)}.")
    if variables["test_host_image"] not in SUITES:
        raise TestHostsError(
            f"Host {name}: test_host_image is {variables['test_host_image']!r}, known are {', '.join(SUITES)}."
        )
    address = variables["ansible_host"]
    subnet = variables["test_host_subnet"]
    if ipaddress.ip_address(address) not in ipaddress.ip_network(subnet):
        raise TestHostsError(f"Host {name}: ansible_host {address} is not in test_host_subnet {subnet}.")
    return Host(
        name=name,
        address=address,
        image=variables["test_host_image"],
        project=variables["test_host_project"],
        subnet=subnet,
    )


# --- images --------------------------------------------------------------------------------------


def local_certificate_authorities() -> list[Path]:
    """Return the machine's own certificate authorities: hosts trust what the machine trusts."""
    return sorted(LOCAL_CAS.rglob("*.crt")) if LOCAL_CAS.is_dir() else []


def image_hooks() -> list[str]:
    """Return what happens to a Debian tree before it becomes an image."""
    hooks = [
        # Each host makes its own keys when it is made.
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*',
        f'--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash {USER}',
        f'--customize-hook=chroot "$1" install -d -m 0700 -o {USER} -g {USER} /home/{USER}/.ssh',
        f'--customize-hook=echo "{USER} ALL=(ALL) NOPASSWD: ALL" > "$1"/etc/sudoers.d/{USER}',
    ]
    authorities = local_certificate_authorities()
    if authorities:
        hooks += [
            f"--customize-hook=copy-in {' '.join(map(str, authorities))} {LOCAL_CAS}",
            '--customize-hook=chroot "$1" update-ca-certificates',
        ]
    return hooks


def image_tag(image: str) -> str:
    """Return the full name of an image; it changes with everything that goes into it."""
    digest = hashlib.sha256(" ".join([SUITES[image], *PACKAGES, *image_hooks()]).encode())
    for authority in local_certificate_authorities():
        digest.update(authority.read_bytes())
    return f"{IMAGE_REPOSITORY}:{image}-{digest.hexdigest()[:12]}"


def ensure_image(image: str) -> str:
    """Build the image of a Debian release unless it is there; return its name."""
    tag = image_tag(image)
    with lock(image):
        if run(["podman", "image", "exists", tag], check=False).returncode == 0:
            return tag
        archive = STATE / f"{tag.rpartition(':')[2]}.tar"
        if not archive.exists():
            say(f"{image}: building the image from Debian's packages (about half a minute)")
            for old in STATE.glob(f"{image}-*.tar"):
                old.unlink()
            partial = archive.with_suffix(".partial.tar")
            run(
                [
                    "mmdebstrap",
                    "--variant=minbase",
                    f"--include={','.join(PACKAGES)}",
                    *image_hooks(),
                    SUITES[image],
                    str(partial),
                ]
            )
            run(["mv", str(partial), str(archive)])
        changes = ['CMD ["/lib/systemd/systemd"]', f"LABEL {LABEL}=image"]
        run(["podman", "import", *(f"--change={change}" for change in changes), str(archive), tag])
    return tag


# --- hosts ---------------------------------------------------------------------------------------


def at_work(checkout: str) -> bool:
    """Return whether a program or a shell works in a checkout."""
    for process in Path("/proc").glob("[0-9]*/cwd"):
        # Processes end while they are looked at, and those of others can't be seen.
        with contextlib.suppress(OSError):
            if process.readlink().is_relative_to(checkout):
                return True
    return False


def take_over(project: str, checkout: str) -> None:
    """Remove what an interrupted run of another checkout has left, on a machine that keeps no hosts on purpose.

    Raises:
        TestHostsError: the hosts may be in use.
    """
    if not os.environ.get(TAKE_OVER):
        raise TestHostsError(
            f"The hosts of {project} belong to {checkout}: take them down there first, "
            f"or set {TAKE_OVER}=1 if nobody uses them."
        )
    if at_work(checkout):
        raise TestHostsError(f"The hosts of {project} belong to {checkout}, where a program runs or a shell is open.")
    say(f"{project}: left by an interrupted run in {checkout}")
    remove(project, checkout)


def ensure_network(host: Host) -> None:
    """Make the project's network unless it is there."""
    done = run(["podman", "network", "inspect", host.network], check=False)
    if done.returncode == 0:
        owner = (json.loads(done.stdout)[0].get("labels") or {}).get(LABEL_CHECKOUT)
        if owner == str(ROOT):
            return
        if not owner:
            raise TestHostsError(f"The network {host.network} is not of these hosts: remove or rename it.")
        take_over(host.project, owner)
    labels_arguments = ["--label", f"{LABEL}={host.project}", "--label", f"{LABEL_CHECKOUT}={ROOT}"]
    try:
        run(["podman", "network", "create", "--subnet", host.subnet, *labels_arguments, host.network])
    except TestHostsError as exc:
        raise TestHostsError(
            f"The network {host.subnet} cannot be made ({exc}). If the range is taken on this machine, "
            "change test_host_subnet and the addresses in the inventory."
        ) from exc


def make_host(host: Host, tag: str) -> tuple[Host, bool]:
    """Make and boot one host unless it runs; return it and whether it was made."""
    status = run(["podman", "container", "inspect", "--format={{.State.Status}}", host.container], check=False)
    if status.stdout.strip() == "created":
        # Left half-made by an interrupted run.
        run(["podman", "rm", "--force", host.container])
    elif status.returncode == 0:
        if status.stdout.strip() != "running":
            run(["podman", "start", host.container])
        wait_for_ssh(host)
        return host, False
    run(
        [
            "podman",
            "create",
            f"--name={host.container}",
            f"--hostname={host.name}",
            f"--network={host.network}",
            f"--ip={host.address}",
            "--systemd=always",
            # A container cannot reboot itself: its PID 1 exits, and the runtime starts it again.
            "--restart=always",
            f"--label={LABEL}={host.project}",
            f"--label={LABEL_CHECKOUT}={ROOT}",
            tag,
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        host_key = Path(folder) / "ssh_host_ed25519_key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(host_key)], check=True
        )
        # Copied files belong to root, whatever the archive says; SSH reads this one as the user.
        files = tar_of(
            {
                "etc/ssh/ssh_host_ed25519_key": (host_key.read_bytes(), 0o600),
                f"home/{USER}/.ssh/authorized_keys": (KEY.with_suffix(".pub").read_bytes(), 0o644),
            }
        )
        remember_host_key(host.address, " ".join(host_key.with_suffix(".pub").read_text().split()[:2]))
    run(["podman", "cp", "-", f"{host.container}:/"], stdin=files)
    run(["podman", "start", host.container])
    wait_for_ssh(host)
    return host, True


def tar_of(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Return a tar archive of ``path: (content, mode)``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def remember_host_key(address: str, key: str | None) -> None:
    """Keep the host's public key, so that SSH checks it; ``None`` forgets it."""
    with lock("known_hosts"):
        lines = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
        lines = [line for line in lines if line.split(" ", 1)[0] != address]
        if key:
            lines.append(f"{address} {key}")
        KNOWN_HOSTS.write_text("".join(f"{line}\n" for line in sorted(lines)))


def wait_for_ssh(host: Host) -> None:
    """Wait until a login works: the server greets before the boot lets users in."""
    command = ["ssh", "-F", str(SSH_CONFIG), "-o", "BatchMode=yes", "-o", "ControlPath=none", host.address, "true"]
    deadline = time.monotonic() + BOOT_SECONDS
    while (done := subprocess.run(command, text=True, capture_output=True, check=False)).returncode:
        if time.monotonic() > deadline:
            words = done.stderr.strip().splitlines() or ["no output"]
            raise TestHostsError(f"No login on {host.name} ({host.address}) within {BOOT_SECONDS} s: {words[-1]}")
        time.sleep(0.2)


def up(hosts: list[Host]) -> None:
    """Make and boot the hosts that do not run yet."""
    prepare_machine()
    images = sorted({host.image for host in hosts})
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        tags = dict(zip(images, pool.map(ensure_image, images), strict=True))
        for host in {host.project: host for host in hosts}.values():
            ensure_network(host)
        for host, made in pool.map(lambda host: make_host(host, tags[host.image]), hosts):
            say(f"{host.name:<12} {host.address:<15} {host.image}  {'booted' if made else 'is running'}")


def remove(project: str, checkout: str) -> None:
    """Remove the hosts and the network of a project, made by a checkout, and nothing else."""
    filters = [f"--filter=label={LABEL}={project}", f"--filter=label={LABEL_CHECKOUT}={checkout}"]
    containers = run(["podman", "ps", "--all", "--quiet", *filters]).stdout.split()
    if containers:
        run(["podman", "rm", "--force", "--time=0", *containers])
    networks = run(["podman", "network", "ls", "--quiet", *filters]).stdout.split()
    if networks:
        run(["podman", "network", "rm", *networks])
    say(f"{project}: {len(containers)} hosts and {len(networks)} networks removed")


def down(hosts: list[Host]) -> None:
    """Remove the hosts and the networks of the inventory's projects, made by this checkout."""
    for project in sorted({host.project for host in hosts}):
        remove(project, str(ROOT))
    for host in hosts:
        remember_host_key(host.address, None)


def remove_images() -> None:
    """Remove this project's images that no container uses any more."""
    used = set(run(["podman", "ps", "--all", "--format={{.Image}}"]).stdout.split())
    images = run(["podman", "images", "--filter", f"label={LABEL}", "--format={{.Repository}}:{{.Tag}}"]).stdout.split()
    for image in images:
        if image not in used:
            run(["podman", "rmi", image])
            say(f"{image}: removed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Throw-away hosts for the demo and the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "make and boot the hosts"), ("down", "remove them, their network and nothing else")):
        command = commands.add_parser(name, help=text)
        command.add_argument("-i", "--inventory", type=Path, required=True)
    images = commands.add_parser("images", help="build the images, ahead of the hosts")
    images.add_argument("image", nargs="*", choices=[*SUITES, []], default=[])
    commands.add_parser("remove-images", help="remove the images that no host uses")
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            up(read_inventory(options.inventory))
        elif options.command == "down":
            prepare_machine()
            down(read_inventory(options.inventory))
        elif options.command == "images":
            prepare_machine()
            with concurrent.futures.ThreadPoolExecutor() as pool:
                for tag in pool.map(ensure_image, options.image or SUITES):
                    say(f"{tag} is there")
        else:
            prepare_machine()
            remove_images()
    except TestHostsError as exc:
        print(f"testhosts: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

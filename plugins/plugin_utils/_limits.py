# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host allows its services, read from /proc."""

from __future__ import annotations

import re
import typing as t

_CAP_SYS_RESOURCE = 24
_ALL_IDS = re.compile(r"^\s*0\s+0\s+4294967295\s*$")

FILES = (
    "/proc/1/limits",
    "/proc/1/status",
    "/proc/1/uid_map",
    "/proc/self/mounts",
    "/proc/sys/fs/nr_open",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)


def _by_file(text: str) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, separator, content = line.partition(":")
        if separator and name.startswith("/"):
            files.setdefault(name, []).append(content)
    return files


def _number(files: dict[str, list[str]], name: str, default: int) -> int:
    try:
        return int(files[name][0])
    except (KeyError, IndexError, ValueError):
        return default


def host_limits(text: str) -> dict[str, t.Any]:
    """Read the output of ``grep -s "" FILES`` (each line: file, colon, content).

    *nofile* is the highest number of descriptors that the service manager can give to a service: what fs.nr_open
    says where it may raise limits, its own hard limit where it may not (containers without CAP_SYS_RESOURCE).
    *kernel_writable* says whether kernel settings can be changed from inside this host.
    """
    files = _by_file(text)
    nr_open = _number(files, "/proc/sys/fs/nr_open", 1048576)
    hard = nr_open
    for line in files.get("/proc/1/limits", []):
        match = re.match(r"^Max open files\s+\S+\s+(\d+)", line)
        if match:
            hard = int(match.group(1))
    capabilities = 0
    for line in files.get("/proc/1/status", []):
        match = re.match(r"^CapEff:\s*([0-9a-fA-F]+)", line)
        if match:
            capabilities = int(match.group(1), 16)
    own_users = not any(_ALL_IDS.match(line) for line in files.get("/proc/1/uid_map", []))
    may_raise = bool(capabilities >> _CAP_SYS_RESOURCE & 1) and not own_users
    read_only = False
    for line in files.get("/proc/self/mounts", []):
        fields = line.split()
        if len(fields) > 3 and fields[1] in ("/proc/sys", "/proc"):
            read_only = "ro" in fields[3].split(",")
    hugepages = re.search(r"\[(\w+)\]", " ".join(files.get("/sys/kernel/mm/transparent_hugepage/enabled", [])))
    return {
        "nofile": nr_open if may_raise else min(hard, nr_open),
        "somaxconn": _number(files, "/proc/sys/net/core/somaxconn", 4096),
        "overcommit_memory": _number(files, "/proc/sys/vm/overcommit_memory", 0),
        "transparent_hugepage": hugepages.group(1) if hugepages else "unknown",
        "kernel_writable": not read_only and not own_users,
    }

"""What a host allows its services, from /proc of machines and of containers."""

from __future__ import annotations

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._limits import host_limits

MACHINE = """\
/proc/1/limits:Limit                     Soft Limit           Hard Limit           Units
/proc/1/limits:Max open files            1048576              1048576              files
/proc/1/status:Name:\tsystemd
/proc/1/status:CapEff:\t000001ffffffffff
/proc/1/uid_map:         0          0 4294967295
/proc/self/mounts:sysfs /sys sysfs rw,nosuid 0 0
/proc/self/mounts:proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/proc/sys/fs/nr_open:1048576
/proc/sys/net/core/somaxconn:4096
/proc/sys/vm/overcommit_memory:1
/sys/kernel/mm/transparent_hugepage/enabled:always [madvise] never
"""
CONTAINER = (
    MACHINE.replace("1048576              1048576", "20000                20000").replace(
        "000001ffffffffff", "00000000a80425fb"
    )
    + "/proc/self/mounts:proc /proc/sys proc ro,nosuid,nodev,noexec,relatime 0 0\n"
)


def test_a_machine_gives_what_its_kernel_allows():
    assert host_limits(MACHINE) == {
        "nofile": 1048576,
        "somaxconn": 4096,
        "overcommit_memory": 1,
        "transparent_hugepage": "madvise",
        "kernel_writable": True,
    }


def test_a_container_gives_no_more_than_it_got():
    limits = host_limits(CONTAINER)
    assert limits["nofile"] == 20000
    assert limits["kernel_writable"] is False


def test_rights_inside_a_user_namespace_do_not_count():
    limits = host_limits(
        MACHINE.replace("0          0 4294967295", "0     100000      65536").replace(
            "1048576              1048576", "1024                 4096"
        )
    )
    assert limits["nofile"] == 4096
    assert limits["kernel_writable"] is False


@pytest.mark.parametrize("text", ["", "grep: nothing", "/proc/sys/net/core/somaxconn:many"])
def test_what_cannot_be_read_is_taken_for_the_default(text):
    limits = host_limits(text)
    assert (limits["nofile"], limits["somaxconn"]) == (1048576, 4096)

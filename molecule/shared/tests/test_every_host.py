"""What holds on every host of the deployment."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from stack import PROJECT, STATE

testinfra_hosts = ["ansible://all"]


def forms(secrets):
    """Each secret as it is, and as it stands in a URL."""
    return sorted({form for secret in secrets.values() for form in (secret, quote(secret, safe=""))})


def key_lines():
    """A line of each private key; those of the first ones are alike."""
    return [path.read_text().splitlines()[2] for path in sorted((STATE / "tls" / PROJECT).glob("*.key"))]


@pytest.fixture(scope="module")
def runs(ansible_playbook, tmp_path_factory):
    """What runs of the playbooks tell the journal; that of a test host does not outlast a boot."""
    for name in ("site", "verify", "diagnose"):
        done = ansible_playbook(name, "-e", f"diagnose_directory={tmp_path_factory.mktemp(name)}")
        assert done.returncode == 0, done.stdout


def test_boot_is_complete(host):
    assert host.run("systemctl is-system-running --wait").stdout.strip() == "running", host.run(
        "systemctl --failed --no-legend"
    ).stdout


def test_no_secret_in_a_command_line(address, root_shell, secrets):
    found = root_shell(
        address, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cFf /dev/stdin", "\n".join(forms(secrets))
    )
    # grep itself has the secrets on its input only.
    assert found.stdout.strip() == "0"


def test_no_secret_in_a_file_that_others_can_read(address, root_shell, secrets):
    # A folder that others cannot enter hides its files, so those are looked for with the eyes of 'nobody'.
    script = (
        "cat > /run/secrets.$$ && chmod 0600 /run/secrets.$$; "
        "su -s /bin/sh nobody -c 'find /etc /home /opt /root /run /tmp /var -xdev -type f -readable -size -4M "
        "-print0 2>/dev/null' | xargs -0 grep -lFf /run/secrets.$$; rm -f /run/secrets.$$"
    )
    assert root_shell(address, script, "\n".join(forms(secrets))).stdout.split() == []


@pytest.mark.usefixtures("runs")
def test_no_secret_in_the_journal(address, root_shell, secrets):
    keys = key_lines()
    assert keys
    invoked = "journalctl -b | grep -c 'Invoked with'"
    assert root_shell(address, invoked).stdout.strip() != "0"
    script = "cat > /run/s; journalctl -b | grep -cFf /run/s; rm -f /run/s"
    found = root_shell(address, script, "\n".join([*forms(secrets), *keys]))
    assert found.stdout.strip() == "0"

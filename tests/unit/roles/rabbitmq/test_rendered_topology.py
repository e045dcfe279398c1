"""What the role passes to rabbitmq_topology, rendered by Ansible, beside what earlier releases declared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
ROLE = ROOT / "roles" / "rabbitmq"
PLAYBOOK = f"""
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files:
    - {ROLE}/defaults/main.yml
    - {ROLE}/vars/main.yml
  vars:
    role_path: {ROLE}
    ansible_python_interpreter: {sys.executable}
  tasks:
    - ansible.builtin.copy:
        content: "{{{{ __rabbitmq_topology | to_nice_json }}}}"
        dest: "{{{{ out }}}}"
        mode: '0600'
"""
PASSWORDS = {f"rabbitmq_{user}_password": f"password of {user}" for user in ("admin", "worker", "client", "monitoring")}
# All that a topology can depend on.
CASES: dict[str, dict[str, Any]] = {
    "defaults": PASSWORDS,
    "everything": {
        **PASSWORDS,
        "rabbitmq_letters_password": "password of letters",
        "rabbitmq_vhost": "shop",
        "rabbitmq_partitions": 3,
        "rabbitmq_result_expires": 3600,
        "rabbitmq_dead_letters_expire": 60,
        "rabbitmq_dead_letters_max_length": 7,
        "rabbitmq_dead_letters_max_bytes": 8000,
        "rabbitmq_reply_max_bytes": 9000,
        "rabbitmq_reply_expires": 120,
        "rabbitmq_max_queues": 50,
        "rabbitmq_queues": [{"name": "orders", "type": "quorum", "arguments": {"x-max-length": 5}}],
    },
}


def rendered(case: dict[str, Any], folder: Path) -> str:
    playbook, variables, out = folder / "topology.yml", folder / "variables.json", folder / "topology.json"
    playbook.write_text(PLAYBOOK)
    variables.write_text(json.dumps({**case, "out": str(out)}))
    subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-e", f"@{variables}", str(playbook)],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return out.read_text()


# A live server cannot change the arguments of a queue: what is declared must stay as it was, byte for byte.
@pytest.mark.parametrize("name", CASES)
def test_declaration_is_that_of_earlier_releases(name, tmp_path):
    expected = Path(__file__).with_name(f"topology_{name}.json").read_text()
    assert rendered(CASES[name], tmp_path) == expected

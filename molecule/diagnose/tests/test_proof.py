"""What the `verify` playbook proves on hosts that are well; it leaves nothing that the diagnosis would find."""

from __future__ import annotations

import re
import shlex
from typing import Any

# Nobody consumes the third one, on purpose.
QUEUES = ("-e", '{"verify_queues": ["celery", "slow"]}')


def test_pickled_task_is_refused_and_dead_letter_found_with_the_rights(playbook: Any) -> None:
    done = playbook("verify", *QUEUES)
    assert done.returncode == 0, done.stdout
    for queue in ("celery", "slow"):
        words = rf"ok +canary\.refused\[{queue}\] .* refused, and among the dead letters after \d+ ms"
        assert re.search(words, done.stdout), done.stdout
    assert re.search(r"ok +workers\.connections .* Redis: \d+ may be needed, 10000 are allowed", done.stdout), (
        done.stdout
    )
    assert re.search(
        r"sent in \d+ ms, done by the worker after \d+ ms, back through RabbitMQ after \d+ ms", done.stdout
    )
    passed = re.search(r"(\d+) of \1 checks passed", done.stdout)
    print(f"\ncounted: {passed[0] if passed else done.stdout}")

    done = playbook("verify", *QUEUES, "-e", "rabbitmq_letters_password=")
    assert done.returncode == 0, done.stdout
    assert re.search(
        r"- +canary\.refused\[slow\] +left out: not tried, because no user may read dead letters", done.stdout
    )


HANGS = """#!/bin/sh
id --user --name >/tmp/hangs/user
printenv CELERY_BROKER_URL | wc --bytes >/tmp/hangs/url
sleep 1000 &
exec sleep 1000
"""


def test_a_verifier_that_hangs_is_ended_with_its_children(playbook: Any, shell: Any) -> None:
    place = "install -d -m 1777 /tmp/hangs && install -d /tmp/hangs/bin && cd /tmp/hangs/bin"
    shell("worker", f"{place} && printf %s {shlex.quote(HANGS)} >python && chmod 0755 python")
    try:
        done = playbook("verify", "-e", "worker_venv=/tmp/hangs", "-e", "verify_timeout=3")
        assert done.returncode == 2, done.stdout
        assert "the checks did not end within 3 s and were stopped; the last answered was none" in " ".join(
            done.stdout.split()
        )
        assert shell("worker", "pgrep --full '[s]leep 1000' || echo none") == "none\n"
        assert shell("worker", "cat /tmp/hangs/user") == "celery\n"
        assert int(shell("worker", "cat /tmp/hangs/url")) > 20
    finally:
        shell("worker", "rm -r /tmp/hangs")

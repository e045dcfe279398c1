"""What the `verify` playbook proves on hosts that are well; it leaves nothing that the diagnosis would find."""

from __future__ import annotations

import re
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

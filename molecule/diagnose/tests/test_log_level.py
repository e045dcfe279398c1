"""Log levels of running workers are raised without a restart, in all processes, and go back by themselves."""

from __future__ import annotations

import json
import time
from typing import Any


def whispers(shell: Any, *arguments: Any) -> tuple[int, int]:
    """Run the task that says a word at DEBUG; return its process, and how often it was to be heard."""
    said = shell(
        "worker",
        f"python \"print(app.send_task('troubles.whisper', {list(arguments)!r}).get(timeout=60))\"",
    )
    process, heard = json.loads(said.strip().splitlines()[-1])
    return process, heard


def test_levels_are_raised_in_children_and_their_successors_and_put_back(shell: Any, playbook: Any) -> None:
    main = shell("worker", "systemctl show -P MainPID celery-worker@default")
    assert whispers(shell, "before")[1] == 0
    # It runs while the level is raised, and hears of it in its middle.
    shell("worker", "python \"app.send_task('troubles.whisper', ['meanwhile', 60, 0.5])\"")
    done = playbook("log_level", "-e", "log_level_seconds=600")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "default@worker1" in done.stdout
    assert "children: 2" in done.stdout

    child, heard = whispers(shell, "raised")
    assert heard == 1
    # A child that replaces another has it as well; so the one that runs 'meanwhile' must go, whichever it is.
    shell("worker", f"kill -KILL {child}; sleep 2")
    successors = {whispers(shell, "successor") for _ in range(3)}
    assert {heard for _, heard in successors} == {1}
    journal = shell("worker", "journalctl -u celery-worker@default -o cat --since -5min")
    assert "whispered raised" in journal
    assert "whispered meanwhile" in journal
    assert "whispered successor" in journal
    # kombu's tracing, of connections that were made since.
    assert "Kombu connection" in journal

    assert playbook("log_level", "-e", "log_level_seconds=3").returncode == 0
    time.sleep(5)
    assert whispers(shell, "after")[1] == 0
    assert shell("worker", "systemctl show -P MainPID celery-worker@default") == main


def test_wrong_level_is_refused_and_second_reset_succeeds(playbook: Any) -> None:
    refused = playbook("log_level", "-e", "log_level=LOUD")
    assert refused.returncode == 2
    assert "is not a valid level" in refused.stdout + refused.stderr
    for _ in range(2):
        done = playbook("log_level", "-e", "log_level=reset")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "levels are as they were" in done.stdout

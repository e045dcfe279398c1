"""Every name of a RabbitMQ object, wherever it is written, is in the file that says what must exist."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from celery_hybrid.rabbitmq.objects import DECLARED

ROOT = Path(__file__).parents[4]
PLACES = ("celery-hybrid/src", "roles", "plugins", "playbooks")
NAME = re.compile(r"(?<![\w./@-])celery\\*\.[a-z_][\w.]*")
PLACEHOLDER = re.compile(r"\\\$\\\{\w+\\\}")

# What else has such a name.
ELSEWHERE = {
    "keys of Redis": {
        *("celery.chord", "celery.chords.open", "celery.chords.ready", "celery.purges", "celery.purging", "celery.put"),
        *("celery.replayed", "celery.run", "celery.undecodable", "celery.undeliverable", "celery.watch"),
        *("celery.watcher", "celery.guard"),
    },
    "queues of the verifier in Redis": {"celery.verify", "celery.canary"},
    "a logger": {"celery.task"},
    "a task of Celery": {"celery.accumulate"},
    "files": {"celery.env", "celery.html"},
}


def written() -> dict[str, set[str]]:
    """Return all names that begin with ``celery.``, with the files that hold them."""
    found = defaultdict(set)
    for place in PLACES:
        for path in (ROOT / place).rglob("*"):
            if path.suffix in {".py", ".yml", ".j2", ".md", ".json", ".html", ".lua", ".jsonl"} and path.is_file():
                for name in NAME.findall(path.read_text()):
                    found[name.replace("\\", "").rstrip(".")].add(str(path.relative_to(ROOT)))
    return found


def declared() -> list[re.Pattern[str]]:
    """Return what the names in the file match; one with a number or an address is also written without."""
    objects: list[dict[str, Any]] = [
        *(each for kind in DECLARED["objects"].values() for each in kind),
        *DECLARED["made_by_processes"],
        *DECLARED["former"],
    ]
    names = {each[key] for each in objects for key in ("name", "source", "destination", "exchange") if key in each}
    patterns = []
    for name in names:
        text = re.escape(name)
        patterns.append(re.compile(PLACEHOLDER.sub(r"\\w+", text)))
        if (end := PLACEHOLDER.search(text)) and end.start():
            patterns.append(re.compile(text[: end.start()].removesuffix(r"\.")))
    return patterns


def of_celery(name: str) -> bool:
    """Whether a name is that of a module of Celery, or of something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name) is not None
    except ImportError:
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ImportError:
            return False


def undeclared(names: dict[str, set[str]]) -> dict[str, set[str]]:
    patterns = declared()
    elsewhere = set().union(*ELSEWHERE.values())
    return {
        name: files
        for name, files in names.items()
        if not any(pattern.fullmatch(name) for pattern in patterns) and name not in elsewhere and not of_celery(name)
    }


def test_every_written_name_is_declared():
    names = written()
    assert {"celery.results", "celery.dead_letters", "celery.dlx", "celery.reply", "celery.chords"} <= set(names)
    assert undeclared(names) == {}


@pytest.mark.parametrize("name", ["celery.orphans", "celery.dlx.x", "celery.resultz.3", "celery.dead_letter"])
def test_another_name_is_found(name):
    assert undeclared({name: {"somewhere.py"}}) == {name: {"somewhere.py"}}


def test_nothing_is_listed_in_vain():
    assert set().union(*ELSEWHERE.values()) <= set(written())

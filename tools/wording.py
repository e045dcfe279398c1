#!/usr/bin/env python3
# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find wording that an English-speaking reader would have to translate, in the files that git tracks.

Ends with 1 and names the place, the words and what to write instead. With paths, only these are read.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Not read: this file and its test, and what others or programs have written.
LEFT_OUT = ("tools/wording.py", "tests/unit/tools/test_wording.py", "LICENSE", "CHANGELOG.md")
SUFFIXES = {".md", ".py", ".yml", ".yaml", ".j2", ".sh", ".toml", ".json", ".html", ".txt", ".template", ""}

_ROLES = "redis|rabbitmq|worker|monitoring"
_PLAYBOOKS = "site|verify|drift|release|diagnose|dead_letters|purge|certificates|log_level"
# Expression, and what to write instead.
HABITS: dict[str, str] = {
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer\b|more\b|better\b|worse\b|different\b)": "'is not a …'",
    rf"\bthe roles? [`'C(]*(?:{_ROLES})\b": "the name before the noun: the `redis` role",
    rf"\bthe playbooks? [`'C(]*(?:{_PLAYBOOKS})\b": "the name before the noun: the `site` playbook",
    r"^\s*- (?:[Pp]laybook|[Rr]ole|[Cc]allback) `*\w+`* ": "the name before the noun: the `site` playbook",
    r"\bthe \d+\. of\b|\}\. of\b": "attempt 1 of 3",
    r"\b(?:Tell|tells?) whether\b": "Return whether",
    r"\bin clear\b": "plaintext, without TLS",
    r"\bput away\b": "dead-lettered, stored",
    r"\bfor ever\b": "indefinitely",
    r"\banew\b": "again",
    r"\bin hand\b": "unacknowledged",
    r"\b(?:whoever|Whoever)\b|\b[Tt]hose who\b": "name the program or the role: clients, users who, a worker that",
    r"\b[Ss]omebody\b": "someone; or name the program",
    r"\bclean look\b|\b[Aa] look (?:for|at)\b": "a check",
    r"\b(?:with|has|gets) a sentence\b": "with an error that says why; gives a reason",
    r"\bSo (?:many|long|soon)\b": "name the thing: 'Records looked up at a time'",
    r"\b1 (?:messages|results|records|tasks|workers|queues|streams|letters)\b": "the singular after 1",
}


def tracked() -> list[str]:
    """Return the paths of all files that git tracks."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in done.stdout.split("\0") if path]


def found_in(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number of the line, the words, and what to write instead."""
    quoted = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        # In a page, what programs print.
        quoted ^= path.suffix == ".md" and line.startswith("```")
        if quoted:
            continue
        # The name of a test is a sentence too.
        text = line.replace("_", " ") if "def test_" in line else line
        for habit, instead in HABITS.items():
            for match in re.finditer(habit, text):
                yield number, match[0].strip(), instead


def main() -> int:
    """Read the files; return the exit status."""
    paths = sys.argv[1:] or tracked()
    count = 0
    for name in paths:
        path = ROOT / name
        if name in LEFT_OUT or path.suffix not in SUFFIXES or not path.is_file():
            continue
        for number, words, instead in found_in(path):
            count += 1
            print(f"{name}:{number}: {words!r}: {instead}", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notes of the applications of the suites, which no fault touches."""

from __future__ import annotations

import os
from pathlib import Path

NOTES = Path(os.environ["CHAOS_NOTES"])


def note(what: str, *words: object) -> None:
    """Append a line to a file of the run; it is there although the process is killed in the next moment."""
    file = os.open(NOTES / what, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, f"{' '.join(map(str, words))}\n".encode())
    finally:
        os.close(file)

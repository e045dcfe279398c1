# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line tools of RabbitMQ, for what the management API does not offer."""

from __future__ import annotations

import typing as t


class CommandError(Exception):
    """A tool failed; the message says what it said and what to check."""


def output(module: t.Any, *command: str) -> str:
    """Run a command and return its standard output.

    Raises:
        CommandError: it ends with another code than 0.
    """
    code, out, err = module.run_command(list(command))
    if code:
        said = " ".join((err or out).split()) or "nothing"
        raise CommandError(
            f"{' '.join(command[:3])} ended with code {code} and said: {said[:500]}. Check that RabbitMQ runs on this "
            "host, and that the task has 'become'."
        )
    return str(out)

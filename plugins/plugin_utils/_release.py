# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which releases of the application a host has served, which one it goes back to, and who has what.

A release is a dictionary: ``release`` (a checksum of all that was asked for, the same on every host),
``environment`` (path of the virtual environment), ``version`` (in words), ``checksum`` (of the application)
and ``since`` (ISO 8601, UTC). A host's history is a list of them, the one in use last.
"""

from __future__ import annotations

import re

Release = dict[str, str]
UNKNOWN: Release = {"release": "", "environment": "", "version": "", "checksum": "", "since": ""}


def release_history(history: list[Release], taken: Release, former: str = "", keep: int = 10) -> list[Release]:
    """Return the history after a release was taken into use.

    One that was served before is gone back to: what came after it is forgotten, so that the next step back goes
    further back. So does one that was built again, with a number after its name, because it had been changed by hand:
    nobody wants to go back to that. A *former* environment that the history does not end with was made by an older
    collection, and is added.

    Args:
        history: as it was.
        taken: the release that is in use now.
        former: the environment that was in use before, as far as known.
        keep: length of the history.
    """
    known = [{**UNKNOWN, **entry} for entry in history]
    if former and former != taken["environment"] and (not known or known[-1]["environment"] != former):
        known.append({**UNKNOWN, "environment": former})
    places = [built_from(entry["environment"]) for entry in known]
    if built_from(taken["environment"]) in places:
        known = known[: places.index(built_from(taken["environment"]))]
    return [*known, {**UNKNOWN, **taken}][-keep:]


def built_from(environment: str) -> str:
    """Return the path of an environment without the number of those that were built again."""
    return re.sub(r"-[1-9]\d*$", "", environment)


def release_target(histories: dict[str, list[Release]], host: str) -> Release | None:
    """Return the release that a host goes back to; nothing when it has to stay where it is.

    After a release that was stopped half-way only some hosts have it: those that have the newest go back, the others
    have what these go back to.

    Args:
        histories: of every host of the deployment.
        host: the one that is asked about.

    Raises:
        ValueError: it would have to go back, and has nothing to go back to.
    """
    current = {name: history[-1] for name, history in histories.items() if history}
    if host not in current:
        return None
    newest = max(current.values(), key=lambda entry: entry["since"])
    if (current[host]["release"] or current[host]["environment"]) != (newest["release"] or newest["environment"]):
        return None
    if len(histories[host]) < 2:
        raise ValueError(
            f"{host} has no release to go back to: {current[host]['version'] or current[host]['environment']} is the "
            "first. Set worker_app_source and worker_app_version to the version that is wanted, and release that."
        )
    return histories[host][-2]


def release_table(rows: list[dict[str, str]]) -> list[str]:
    """Return a table for people, a line for each host.

    Args:
        rows: ``host``, ``outcome`` and a release.
    """
    names = ("host", "version", "checksum", "since", "outcome")
    lines = [{name: name.upper() for name in names}]
    lines += [{**row, "checksum": row.get("checksum", "")[:12]} for row in rows]
    widths = {name: max(len(str(line.get(name, ""))) for line in lines) for name in names}
    return ["  ".join(str(line.get(name, "")).ljust(widths[name]) for name in names).rstrip() for line in lines]

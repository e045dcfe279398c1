# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must exist in RabbitMQ, from the file that the package and the role share, as rabbitmq_topology takes it.

The package fills in the same file for itself; a unit test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# What the file says about an object, and is not a parameter of the module.
ABOUT = {"checked", "each", "option", "why"}


def objects(declared: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return all objects by their kind, with values in the place of their names.

    Args:
        declared: what the file holds.
        values: of each name that stands in it.

    Raises:
        KeyError: a value is missing.
    """
    return {
        kind: [
            {name: _filled(value, one) for name, value in item.items() if name not in ABOUT}
            for item in items
            for one in _numbered(item, values)
        ]
        for kind, items in declared["objects"].items()
    }


def _numbered(item: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    name = item.get("each")
    if name is None:
        yield values
    else:
        for number in range(int(values[f"{name}s"])):
            yield {**values, name: number}


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: _filled(each, values) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if not isinstance(value, str):
        return value
    if whole := PLACEHOLDER.fullmatch(value):
        return values[whole[1]]
    return PLACEHOLDER.sub(lambda found: str(values[found[1]]), value)

# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as they stand in files: a Python module, an environment file of systemd."""

from __future__ import annotations

import math
import typing as t


def python_literal(value: t.Any, indent: int = 0, width: int = 100) -> str:
    """Return a value of Ansible as a Python literal, one entry a line where it does not fit into one.

    Raises:
        TypeError: the value has a type that is not declared state, such as an undefined variable.
    """
    flat = _flat(value)
    if not isinstance(value, (dict, list, tuple)) or not value or indent + len(flat) <= width:
        return flat
    inner = indent + 4
    if isinstance(value, dict):
        lines = [f"{_flat(key)}: {python_literal(item, inner, width)}," for key, item in value.items()]
        brackets = "{}"
    else:
        lines = [f"{python_literal(item, inner, width)}," for item in value]
        brackets = "[]"
    body = "".join(f"{' ' * inner}{line}\n" for line in lines)
    return f"{brackets[0]}\n{body}{' ' * indent}{brackets[1]}"


def _flat(value: t.Any) -> str:
    # Strings and numbers of Ansible are subclasses with tags: name the plain type before repr().
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} is not a number that a setting can have")
        return repr(float(value))
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flat(key)}: {_flat(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flat(item) for item in value) + "]"
    raise TypeError(f"a {type(value).__name__} cannot be written as a setting")


def environment_line(value: t.Any, name: str) -> str:
    """Return ``NAME="value"`` for an environment file, read alike by systemd and by a shell.

    Raises:
        ValueError: the value has a line break or a NUL, which such a file cannot hold.
    """
    text = str(value)
    if any(character in text for character in "\n\r\x00"):
        raise ValueError(f"{name} has a line break, which an environment file cannot hold")
    for character in '\\"`$':
        text = text.replace(character, f"\\{character}")
    return f'{name}="{text}"'

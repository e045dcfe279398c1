# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles accept as a secret."""

from __future__ import annotations

import typing as t

MINIMUM_LENGTH = 16
MINIMUM_DIFFERENT = 6

# Erlang makes a cookie of 20 capital letters from a guessable seed when it finds none.
COOKIE_MINIMUM_LENGTH = 32
COOKIE_MAXIMUM_LENGTH = 255


def password_problem(value: t.Any, user: str = "") -> str:
    """Return why *value* is not acceptable as a password for *user*, or an empty string. Never contains the value."""
    if value is None or value == "":
        return "is missing"
    if not isinstance(value, str):
        return "must be a string (quote it)"
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        return "contains a line break or another control character"
    if len(value) < MINIMUM_LENGTH:
        return f"is weak: it has fewer than {MINIMUM_LENGTH} characters"
    if len(set(value)) < MINIMUM_DIFFERENT:
        return f"is weak: it has fewer than {MINIMUM_DIFFERENT} different characters"
    if user and value.lower() == str(user).lower():
        return "is weak: it is the name of its user"
    return ""


def erlang_cookie_problem(value: t.Any) -> str:
    """Return why *value* cannot stay the Erlang cookie of a node, or an empty string."""
    if not isinstance(value, str) or not value.strip():
        return "is missing"
    cookie = value.strip()
    if not all(33 <= ord(character) <= 126 for character in cookie):
        return "contains a character that Erlang does not take"
    if len(cookie) < COOKIE_MINIMUM_LENGTH:
        return f"is weak: it has fewer than {COOKIE_MINIMUM_LENGTH} characters"
    if len(cookie) > COOKIE_MAXIMUM_LENGTH:
        return f"is longer than the {COOKIE_MAXIMUM_LENGTH} characters Erlang takes"
    if len(set(cookie)) < 10:
        return "is weak: it has fewer than 10 different characters"
    return ""

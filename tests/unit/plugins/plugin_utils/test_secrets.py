"""Passwords and Erlang cookies that are taken, and those that are not."""

from __future__ import annotations

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._secrets import (
    erlang_cookie_problem,
    password_problem,
)


@pytest.mark.parametrize(
    ("value", "user"),
    [
        ("0a8c5bd2a6e94f3f9d17c2be", "celery"),
        ("Zwölf Boxkämpfer jagen", "celery"),
        ("@:/%#?&+=!$^;abcdef", ""),
        ("abcdefabcdefabcd", "admin"),
    ],
)
def test_good_passwords_are_taken(value, user):
    assert password_problem(value, user) == ""


@pytest.mark.parametrize(
    ("value", "user", "reason"),
    [
        ("", "celery", "is missing"),
        (None, "celery", "is missing"),
        (1234567890123456, "celery", "must be a string"),
        (["0a8c5bd2a6e94f3f9d17c2be"], "celery", "must be a string"),
        ("0a8c5bd2a6e94f3", "celery", "fewer than 16 characters"),
        ("aaaaabbbbbcccccddddd", "celery", "fewer than 6 different"),
        ("celery-of-the-year", "Celery-of-the-Year", "name of its user"),
        ("0a8c5bd2a6e94f3f\n9d17c2be", "celery", "control character"),
        ("0a8c5bd2a6e94f3f\x7f9d17c2be", "celery", "control character"),
    ],
)
def test_bad_passwords_are_refused_without_being_repeated(value, user, reason):
    problem = password_problem(value, user)
    assert reason in problem
    if value and isinstance(value, str):
        assert value not in problem


def test_a_cookie_of_debian_is_taken():
    assert erlang_cookie_problem("fwZc0mWm0n5zqXl6pGq5m3x7s7cJ0Jv4o0Ekq1oQ0P7k1Z0u2y3x4w5v\n") == ""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "missing"),
        (None, "missing"),
        (" \n", "missing"),
        ("QWERTYUIOPASDFGHJKLZ", "fewer than 32"),
        ("ab" * 20, "fewer than 10 different"),
        ("0a8c5bd2a6e94f3f9d17c2be 0a8c5bd2a6e94f3f", "does not take"),
        ("abcdefghijklmnop" * 16, "longer than the 255"),
    ],
)
def test_weak_cookies_are_refused(value, reason):
    assert reason in erlang_cookie_problem(value)

from __future__ import annotations

import pytest
from kombu.transport import redis as stock

from celery_hybrid.broker import separators

DEFAULT = stock.Channel.sep


@pytest.mark.parametrize("own", [DEFAULT, ":"])
@pytest.mark.parametrize("member", [f"k{DEFAULT}p{DEFAULT}q", "k:p:q"])
def test_binding_reads_a_member_with_any_known_separator(member, own):
    assert separators.binding(member, own) == ("k", "p", "q")


def test_binding_prefers_the_separator_of_the_channel():
    assert separators.binding(f"a:b{DEFAULT}{DEFAULT}c:d", DEFAULT) == ("a:b", "", "c:d")


@pytest.mark.parametrize("member", ["", "k", "k|p|q", "k:q", "a:b:c:d"])
def test_binding_skips_a_member_with_an_unknown_separator(member):
    assert separators.binding(member, DEFAULT) is None


def test_foreign_lists_are_declared_queues_with_another_separator_and_a_priority():
    names = ["mail", f"mail{DEFAULT}3", "mail:3", "mail|9", "mail3", "mail:0", "mail-2", "mail:12", "other:3", "mail:7"]
    found = list(separators.foreign_lists(names, ["mail", "mail:7"], DEFAULT))
    assert found == [("mail:3", "mail", 3), ("mail|9", "mail", 9)]

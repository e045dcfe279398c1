"""Work that is guarded happens once, wherever its records are."""

from __future__ import annotations

import pytest

from celery_hybrid.guard import BeingDoneError, Claim, Guard, LostClaimError


class Table(dict):
    """Records of an application's own."""

    def begin(self, name, text, seconds):
        if name in self:
            return self[name], 7.0
        self[name] = text
        return None

    def replace(self, name, text, new, seconds):
        if self.get(name) != text:
            return False
        self[name] = new
        return True

    def remove(self, name, text):
        return self.get(name) == text and bool(self.pop(name))


class Forgetful(Table):
    """Loses each answer, and is asked again, as Redis by its client."""

    def begin(self, *question):
        super().begin(*question)
        return super().begin(*question)

    def replace(self, *question):
        super().replace(*question)
        return super().replace(*question)


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def guard(table):
    return Guard(table, lease=5, keep=60)


def test_once(guard):
    ran = []
    assert [guard.once("a", lambda: ran.append(1) or {"n": len(ran)}) for _ in range(3)] == [{"n": 1}] * 3
    assert ran == [1]


def test_an_answer_that_was_lost():
    guard = Guard(Forgetful(), lease=5, keep=60)
    claim = guard.claim("a")
    guard.record(claim, "done")
    assert guard.claim("a") == "done"
    with pytest.raises(LostClaimError):
        guard.record(Claim("a", "claim:other"), "done")


def test_not_twice_at_once(guard):
    guard.claim("a")
    with pytest.raises(BeingDoneError, match="claim ends in 7 s"):
        guard.once("a", list)


def test_what_did_not_happen_may_be_tried_at_once(guard):
    def refused():
        raise KeyError

    with pytest.raises(KeyError):
        guard.once("a", refused, harmless=(LookupError,))
    assert guard.once("a", lambda: "done") == "done"


def test_what_may_have_happened_is_waited_for(guard):
    def odd():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guard.once("a", odd, harmless=(LookupError,))
    with pytest.raises(BeingDoneError):
        guard.claim("a")


def test_a_claim_that_ran_out_while_nobody_came(guard, table):
    claim = guard.claim("a")
    table.clear()
    guard.record(claim, 1)
    assert guard.claim("a") == 1


def test_a_lost_claim_is_noticed(guard, table):
    claim = guard.claim("a")
    table.clear()
    other = guard.claim("a")
    guard.release(claim)
    with pytest.raises(LostClaimError, match="ran out after 5 s"):
        guard.record(claim, 1)
    assert isinstance(other, Claim)
    guard.record(other, 2)
    assert guard.claim("a") == 2

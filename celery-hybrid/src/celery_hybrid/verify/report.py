"""Checks and the report that collects them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from celery_hybrid.masking import Mask


class Failed(Exception):  # noqa: N818 - a verdict, not an error of this program
    """A probe's verdict that its check failed.

    Args:
        actual: what was found, in words.
        remedy: what to do about it; None keeps the check's own remedy.
    """

    def __init__(self, actual: str, remedy: str | None = None) -> None:
        super().__init__(actual)
        self.actual = actual
        self.remedy = remedy


class Skipped(Exception):  # noqa: N818 - no error either
    """A probe's word that it cannot find out, and that nothing is wrong with that; says why, and what would let it."""


@dataclass(frozen=True)
class Check:
    """One answered question.

    Attributes:
        name: stable name.
        ok: whether the rule holds.
        expected: the rule, in words.
        actual: what was found, in words.
        remedy: what to do; empty when all is well.
        milliseconds: how long finding out took.
        blocked: it was not run, because one that it needs had failed; then it is not ok.
    """

    name: str
    ok: bool
    expected: str
    actual: str
    remedy: str
    milliseconds: float
    blocked: bool = False

    def sentence(self) -> str:
        """What failed, what was expected, and what to do."""
        return f"{self.name}: {self.actual}; expected: {self.expected}. {self.remedy}"


class CheckReport:
    """Runs probes, times them, and keeps what they found.

    A check whose requirement failed is not run and counts as failed, never as passed.

    Args:
        mask: removes secrets from everything that is kept.
        skip: names of checks to leave out; they are listed, not counted.
        tell: is given each check as soon as it is answered.
    """

    def __init__(self, mask: Mask, skip: Iterable[str] = (), tell: Callable[[Check], None] = lambda _: None) -> None:
        self.checks: list[Check] = []
        #: With the reason; that of those left out on request is empty.
        self.skipped: dict[str, str] = {}
        self._mask = mask
        self._skip = frozenset(skip)
        self._tell = tell

    def run(
        self, name: str, expected: str, probe: Callable[[], str], *, remedy: str, needs: Sequence[str] = ()
    ) -> bool:
        """Run a probe unless a check that it needs has failed.

        Args:
            name: the check's stable name.
            expected: the rule, in words.
            probe: returns what was found; raises :class:`Failed`, or anything else, when the rule is broken, and
                :class:`Skipped` when it cannot know.
            remedy: what to do when it fails.
            needs: names of earlier checks without which the probe says nothing.

        Returns:
            Whether the check passed.
        """
        if self.leaves_out(name):
            self.skipped[name] = ""
            return False
        broken = [need for need in needs if self.failed(need)]
        if broken:
            actual = f"not run, because {' and '.join(broken)} failed"
            remedy = f"Repair {' and '.join(broken)} first."
            return self._add(name, False, expected, actual, remedy, 0.0, blocked=True)
        start = time.perf_counter()
        ok = False
        try:
            actual = probe()
            ok = True
        except Failed as verdict:
            actual = verdict.actual
            remedy = verdict.remedy or remedy
        except Skipped as why:
            self.skipped[name] = self._mask(str(why))
            return False
        except Exception as exc:
            actual = describe(exc)
        return self._add(name, ok, expected, actual, remedy, (time.perf_counter() - start) * 1000)

    def failed(self, name: str) -> bool:
        """Whether the named check ran, or should have run, and failed."""
        return any(check.name == name and not check.ok for check in self.checks)

    def leaves_out(self, name: str) -> bool:
        """Whether the named check, or the family before its bracket, was asked to be left out."""
        return name in self._skip or name.partition("[")[0] in self._skip

    @property
    def ok(self) -> bool:
        """True when every check passed, and there was one."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def sentences(self) -> list[str]:
        """A sentence for each failed check; one for all that were not run because of them."""
        causes: dict[tuple[str, str], list[Check]] = {}
        for check in self.checks:
            if not check.ok and not check.blocked:
                causes.setdefault((check.actual, check.remedy), []).append(check)
        told = [
            checks[0].sentence()
            if len(checks) == 1
            # One cause, such as missing facts, is reported once.
            else f"{', '.join(check.name for check in checks)}: {actual}. {remedy}"
            for (actual, remedy), checks in causes.items()
        ]
        blocked = [check.name for check in self.checks if check.blocked]
        if blocked:
            told.append(f"Not run because of these: {', '.join(blocked)}.")
        return told

    def as_dict(self) -> dict[str, Any]:
        """The report as data."""
        passed = sum(check.ok for check in self.checks)
        return {
            "ok": self.ok,
            "checks": [asdict(check) for check in self.checks],
            "skipped": dict(self.skipped),
            "summary": {"checks": len(self.checks), "passed": passed, "failed": len(self.checks) - passed},
        }

    def _add(
        self,
        name: str,
        ok: bool,
        expected: str,
        actual: str,
        remedy: str,
        milliseconds: float,
        *,
        blocked: bool = False,
    ) -> bool:
        clean = self._mask
        self.checks.append(
            Check(
                name=name,
                ok=ok,
                expected=clean(expected),
                actual=clean(actual),
                remedy="" if ok else clean(remedy),
                milliseconds=round(milliseconds, 1),
                blocked=blocked,
            )
        )
        self._tell(self.checks[-1])
        return ok


def describe(exc: BaseException) -> str:
    """An exception in one line: its message, with its type where the message alone says little."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__

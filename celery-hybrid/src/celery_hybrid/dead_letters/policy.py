"""The setting ``worker_dead_letters``: which tasks are dead-lettered, and which run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_hybrid.errors import OptionError

SETTING = "worker_dead_letters"


@dataclass(frozen=True)
class Policy:
    """The setting ``worker_dead_letters``.

    Attributes:
        failed: dead-letter tasks that failed for good. Messages that no task was made of always are.
        revoked: dead-letter revoked and expired tasks.
        ignore: names of exceptions, with or without their module, that are expected: no letter. Their subclasses, and
            those in a task's ``throws``, are expected as well.
        lost_retries: how often a task is sent again whose process died, ran out of memory, or hit the hard time limit.
            Only tasks that are acknowledged late: others have been promised to run at most once.
        lost_retry_delay: seconds until it runs again, doubled each time.
    """

    failed: bool = True
    revoked: bool = False
    ignore: tuple[str, ...] = ()
    lost_retries: int = 3
    lost_retry_delay: float = 10.0

    @classmethod
    def from_mapping(cls, values: Any) -> Policy:
        """Check the setting.

        Raises:
            OptionError: an unknown name, or a value of the wrong type.
        """
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise OptionError(f"{SETTING} must be a dict of options, not {type(values).__name__}.")
        names = [each.name for each in dataclasses.fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise OptionError(f"{SETTING} has no option {name!r}. Valid names: {', '.join(sorted(names))}.")
            right, words = _KINDS[name]
            if not right(value):
                raise OptionError(f"{SETTING}[{name!r}] must be {words}, not {value!r}.")
        return cls(**{**values, "ignore": tuple(values.get("ignore", ()))})

    def expects(self, exc: BaseException) -> bool:
        """Return whether an exception is expected, so that its task is not dead-lettered."""
        if not self.ignore:
            return False
        names = {name for kind in type(exc).__mro__ for name in (kind.__name__, f"{kind.__module__}.{kind.__name__}")}
        # What cannot be pickled comes from the pool in a wrapper, with its name.
        wrapped = getattr(exc, "exc_cls_name", None)
        if isinstance(wrapped, str):
            names |= {wrapped, f"{getattr(exc, 'exc_module', '')}.{wrapped}"}
        return not names.isdisjoint(self.ignore)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)


_KINDS = {
    "failed": (_bool, "True or False"),
    "revoked": (_bool, "True or False"),
    "ignore": (_names, "a list of names of exceptions"),
    "lost_retries": (_count, "a whole number, 0 for none"),
    "lost_retry_delay": (_seconds, "a number of seconds"),
}

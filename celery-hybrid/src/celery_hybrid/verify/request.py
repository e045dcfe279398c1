"""What is to be verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from .names import NAMES, NEEDED, known

_TYPES: dict[str, tuple[type, ...]] = {
    "app": (str, type(None)),
    "config_module": (str, type(None)),
    "python_path": (list,),
    "queues": (list,),
    "nodes": (list,),
    "expected": (dict,),
    "broker_facts": (dict, type(None)),
    "results_facts": (dict, type(None)),
    "letters": (dict, type(None)),
    "skip": (list,),
    "connect_timeout": (int, float),
    "inspect_timeout": (int, float),
    "canary_timeout": (int, float),
}


class VerifyRequestError(ValueError):
    """The request is not of the form that this program reads."""


@dataclass(frozen=True)
class VerifyRequest:
    """What is to be verified, and against what.

    Attributes:
        app: the application as for ``celery -A``; None takes the configuration module alone.
        config_module: module named by ``CELERY_CONFIG_MODULE``; None keeps the environment's.
        python_path: directories put in front of ``sys.path``, as ``PYTHONPATH`` of the service does.
        queues: queues that get a canary; empty: every queue that the configuration declares.
        nodes: node names that must answer; empty: at least one must.
        expected: settings and the values they must have, over the house rules.
        broker_facts: what Redis says of itself to an administrator (``maxmemory_policy``, ``maxclients``,
            ``connected_clients``, ``host``).
        results_facts: what RabbitMQ's management API says of the virtual host (``exchanges``, ``queues``,
            ``bindings``, ``policies``, ``host``), and of its ``nodes``, with an ``overview``.
        letters: ``user`` and ``password`` of a user of RabbitMQ who may read the dead letters; or ``reason``, why this
            host shall not look for the refused message among them.
        skip: checks to leave out.
        connect_timeout: seconds a connection to a server may take.
        inspect_timeout: seconds in which workers must answer.
        canary_timeout: seconds a canary's round trip may take.
    """

    app: str | None = None
    config_module: str | None = None
    python_path: list[str] = field(default_factory=list)
    queues: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)
    broker_facts: dict[str, Any] | None = None
    results_facts: dict[str, Any] | None = None
    letters: dict[str, Any] | None = None
    skip: list[str] = field(default_factory=list)
    connect_timeout: float = 5.0
    inspect_timeout: float = 5.0
    canary_timeout: float = 15.0

    @classmethod
    def from_mapping(cls, data: object) -> VerifyRequest:
        """A request from decoded JSON.

        Raises:
            RequestError: an unknown name, or a value of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise VerifyRequestError(f"the request must be a JSON object, not {type(data).__name__}")
        names = [each.name for each in fields(cls)]
        for name, value in data.items():
            if name not in names:
                near = get_close_matches(str(name), names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise VerifyRequestError(f"the request has an unknown field {name!r}{hint}")
            if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
                wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _TYPES[name])
                raise VerifyRequestError(f"the request's field {name!r} must be {wanted}, not {type(value).__name__}")
        for name in data.get("skip", []):
            if name in NEEDED:
                raise VerifyRequestError(f"the check {name!r} cannot be left out: the others need it")
            if not known(str(name)):
                near = get_close_matches(str(name), NAMES, n=1)
                raise VerifyRequestError(
                    f"there is no check {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        return cls(**data)

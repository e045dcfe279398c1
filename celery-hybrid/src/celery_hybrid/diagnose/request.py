"""What is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


class DiagnoseRequestError(ValueError):
    """The request is not of the form that this program reads."""


@dataclass(frozen=True)
class DiagnoseRequest:
    """What is to be read, and in which time.

    Attributes:
        config_module: module named by ``CELERY_CONFIG_MODULE``; None keeps the environment's.
        python_path: directories put in front of ``sys.path``, as ``PYTHONPATH`` of the service does.
        nodes: node names that are asked for everything, beside undeclared ones.
        others: node names that are asked for everything elsewhere.
        timeout: seconds that connecting, or one answer, may take.
    """

    config_module: str | None = None
    python_path: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    timeout: float = 2.0

    @classmethod
    def from_mapping(cls, data: object) -> DiagnoseRequest:
        """A request from decoded JSON.

        Raises:
            RequestError: an unknown name.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(data, Mapping) or not set(data) <= names:
            raise DiagnoseRequestError(f"the request must be an object of {', '.join(sorted(names))}")
        return cls(**data)

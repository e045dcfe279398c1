"""Checks of the configuration as the worker's Python loads it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from importlib import metadata
from typing import Any

from celery import Celery
from celery.app.backends import by_url
from celery.app.utils import filter_hidden_settings, find_app
from celery.exceptions import ImproperlyConfigured
from celery.utils.serialization import jsonify

from celery_hybrid.terminal import counted

from .report import CheckReport, Failed, describe
from .results import SET_RESULT_BACKEND

#: The house rules that are plain values.
EXPECTED: dict[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "timezone": "UTC",
    "enable_utc": True,
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
}
#: What every worker must agree on with the file, beyond the settings that have a rule.
AGREED = (
    "result_backend",
    "result_expires",
    "result_extended",
    "broker_pool_limit",
    "task_time_limit",
    "task_soft_time_limit",
    "task_default_queue",
    "task_ignore_result",
    "broker_transport_options.visibility_timeout",
    "result_backend_transport_options.partitions",
)
#: The package that must keep the results.
BACKEND_PACKAGE = "celery_hybrid"
#: The oldest versions that will do, and why.
LEAST: dict[str, tuple[tuple[int, ...], str]] = {
    "celery": ((5, 5), "draining and the hooks of celery-hybrid are not in older ones"),
    "kombu": ((5, 5), "older ones lose tasks when Redis reconnects"),
    "redis": ((5, 2), "older ones do not speak the protocol with which Redis tells of new tasks"),
}
_DEFAULT_VISIBILITY_TIMEOUT = 3600
_IN_THE_FILE = "Correct it in the worker role's variables and run the site playbook; do not edit celeryconfig.py."


def versions() -> str:
    """Return what is installed.

    Raises:
        Failed: something is too old.
    """
    found = {name: metadata.version(name) for name in LEAST}
    old = [
        f"{name} {found[name]}: {why}"
        for name, (least, why) in LEAST.items()
        if tuple(int(part) for part in re.findall(r"\d+", found[name])[: len(least)]) < least
    ]
    if old:
        raise Failed("; ".join(old))
    return ", ".join(f"{name} {version}" for name, version in found.items())


class Settings:
    """The configuration, loaded once.

    Args:
        app: the application as for ``celery -A``, or None.
        config_module: the configuration module, or None for ``CELERY_CONFIG_MODULE``.
        python_path: directories in front of ``sys.path``.
    """

    def __init__(self, app: str | None, config_module: str | None, python_path: list[str]) -> None:
        if config_module:
            os.environ["CELERY_CONFIG_MODULE"] = config_module
        self._module = os.environ.get("CELERY_CONFIG_MODULE")
        self._name = app
        sys.path[:0] = [path for path in python_path if path not in sys.path]
        self._file: dict[str, Any] = {}
        self._app: Any = None
        self._table: dict[str, Any] = {}

    @property
    def app(self) -> Any:
        """The application; only after :meth:`check` found that it loads."""
        return self._app

    def check_loading(self, report: CheckReport) -> bool:
        """Load everything; whether the other checks have something to work with."""
        report.run(
            "settings.file",
            f"the module {self._module} loads" if self._module else "a configuration is named",
            self._load_file,
            remedy="Run the site playbook against this host: the worker role writes the file.",
        )
        if self._name:
            report.run(
                "settings.application",
                f"{self._name} loads and keeps every setting of the file",
                self._load_app,
                remedy="Run the site playbook: with CELERY_LOADER=celery_hybrid.loader:Loader in celery.env the file "
                "wins. If it is there, remove the loader of the application, or the code that sets this after import.",
                needs=["settings.file"] if self._module else [],
            )
        return self._app is not None

    def check_values(self, report: CheckReport, expected: Mapping[str, Any]) -> None:
        """Compare each setting with its rule."""
        report.run(
            "settings.versions",
            ", ".join(f"{name} {'.'.join(map(str, least))}" for name, (least, _) in LEAST.items()) + " or newer",
            versions,
            remedy="Raise worker_packages and run the site playbook.",
        )
        self._table = censored(self._app)
        rules = {**EXPECTED, **expected}
        special = {
            "result_expires": ("a positive number of seconds", self._expires),
            "broker_pool_limit": ("at least 1", self._pool_limit),
            "result_backend": (f"a URL whose backend is {BACKEND_PACKAGE}'s", self._backend),
            "visibility_timeout": ("longer than task_time_limit", self._visibility),
        }
        for name, (rule, probe) in special.items():
            if name not in expected:
                report.run(f"settings.{name}", rule, probe, remedy=_IN_THE_FILE)
        for name, wanted in rules.items():
            report.run(
                f"settings.{name}",
                show(canonical(name, wanted)),
                lambda name=name, wanted=wanted: self._equal(name, wanted),  # type: ignore[misc]
                remedy=_IN_THE_FILE,
            )

    def agreed(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting that workers must share, with the file's value."""
        names = dict.fromkeys([*EXPECTED, *expected, *AGREED])
        return {name: value_of(self._table, name) for name in names if name != "visibility_timeout"}

    def _load_file(self) -> str:
        if not self._module:
            if not self._name:
                raise Failed(
                    "neither CELERY_CONFIG_MODULE nor an application is given",
                    "Set CELERY_CONFIG_MODULE=celeryconfig, or name the application with --app.",
                )
            return f"none, {self._name} configures itself"
        app = Celery("celery_hybrid.verify", set_as_current=False)
        try:
            app.finalize(auto=True)
            self._file = censored(app)
        except ImportError as exc:
            raise Failed(
                f"the module {self._module} cannot be imported: {describe(exc)}",
                "Run the site playbook against this host, or correct PYTHONPATH (python_path).",
            ) from exc
        if not self._name:
            self._app = app
        module = sys.modules.get(self._module)
        return str(getattr(module, "__file__", None) or self._module)

    def _load_app(self) -> str:
        try:
            app = find_app(self._name)
            app.finalize(auto=True)
            # As a worker does; only now are imports and include read.
            app.loader.import_default_modules()
            own = censored(app)
        except BaseException as exc:  # an application's module may even call sys.exit()
            raise Failed(
                f"the application {self._name!r} cannot be loaded: {describe(exc)}",
                "Correct worker_app, or the application: it must import and hold a Celery object.",
            ) from exc
        self._app = app
        if self._file:
            names = [*EXPECTED, *AGREED]
            other = [
                f"{name} is {show(value_of(own, name))}, the file says {show(value_of(self._file, name))}"
                for name in names
                if value_of(own, name) != value_of(self._file, name)
            ]
            if other:
                raise Failed("; ".join(other))
        own_tasks = sum(not name.startswith("celery.") for name in app.tasks)
        return f"{app.main or self._name}, {counted(own_tasks, 'tasks')} of its own"

    def _equal(self, name: str, wanted: Any) -> str:
        value = self._visibility_timeout() if name == "visibility_timeout" else value_of(self._table, name)
        if canonical(name, value) != canonical(name, wanted):
            raise Failed(show(value))
        return show(value)

    def _expires(self) -> str:
        value = canonical("result_expires", self._app.conf.result_expires)
        if not isinstance(value, (int, float)) or value <= 0:
            raise Failed(f"{show(value)}: results would be kept indefinitely, or not at all")
        return f"{value:g} s"

    def _pool_limit(self) -> str:
        value = self._app.conf.broker_pool_limit
        if not isinstance(value, int) or value < 1:
            raise Failed(f"{show(value)}: every publish would open a connection of its own")
        return show(value)

    def _backend(self) -> str:
        url = self._app.conf.result_backend
        if not url:
            raise Failed(
                "no result_backend is configured: results would be dropped",
                SET_RESULT_BACKEND,
            )
        scheme = str(url).partition("://")[0]
        try:
            found, _ = by_url(url, self._app.loader)
        except Exception as exc:
            why = "no installed package provides it" if isinstance(exc, ImproperlyConfigured) else describe(exc)
            raise Failed(
                f"{scheme}:// has no backend: {why}",
                "Install celery-hybrid in the worker's virtual environment: run the site playbook.",
            ) from exc
        place = f"{found.__module__}.{found.__qualname__}"
        if found.__module__.partition(".")[0] != BACKEND_PACKAGE:
            raise Failed(
                f"{scheme}:// is {place}: results would not be kept in RabbitMQ for every process to read",
                SET_RESULT_BACKEND,
            )
        return f"{scheme}:// is {place}"

    def _visibility_timeout(self) -> Any:
        return (self._app.conf.broker_transport_options or {}).get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT)

    def _visibility(self) -> str:
        timeout = canonical("visibility_timeout", self._visibility_timeout())
        limit = canonical("task_time_limit", self._app.conf.task_time_limit)
        if not isinstance(timeout, (int, float)):
            raise Failed(f"visibility_timeout is {show(timeout)}, not a number of seconds")
        if not isinstance(limit, (int, float)) or not limit:
            raise Failed(
                f"{timeout:g} s, and no task_time_limit",
                "Set task_time_limit below visibility_timeout: Redis delivers a task again that runs for longer, "
                "while it still runs.",
            )
        if timeout <= limit:
            raise Failed(
                f"{timeout:g} s, and task_time_limit {limit:g} s",
                "Raise visibility_timeout above task_time_limit: Redis delivers a task again that runs for longer, "
                "while it still runs.",
            )
        return f"{timeout:g} s, and task_time_limit {limit:g} s"


def censored(app: Any) -> dict[str, Any]:
    """An application's configuration as a worker answers it to ``inspect conf``: JSON values, passwords hidden."""
    table = dict(app.conf.table(with_defaults=True, censored=False))
    # The table does not hold what the environment says (CELERY_RESULT_BACKEND); the report does, censored.
    table.pop("result_backend", None)
    table = dict(jsonify(filter_hidden_settings(table), unknown_type_filter=repr))
    try:
        table["result_backend"] = reported_backend(app.bugreport())
    except ValueError:
        # Celery before 5.7 cannot censor "package.module:Class+amqp://…"; neither can a worker.
        table["result_backend"] = None
    return table


def reported_backend(report: str) -> str | None:
    """The result backend's URL in the text of ``inspect report``, censored as Celery does it."""
    found = re.search(r"\bresults:(\S+)", report)
    return found[1] if found else None


def value_of(table: Mapping[str, Any], name: str) -> Any:
    """One setting of a :func:`censored` table, in its comparable form; a dotted name looks into a dict."""
    key, _, inner = name.partition(".")
    value = table.get(key)
    if inner:
        value = (value or {}).get(inner)
    if name == "timezone" and value is None and table.get("enable_utc", True):
        value = "UTC"
    if name == "result_accept_content" and value is None:
        # Celery takes accept_content when this one is not set.
        value = table.get("accept_content")
    return canonical(name, value)


def canonical(name: str, value: Any) -> Any:
    """A value in the one form in which it can be compared, whichever way it was written."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if name.endswith(("accept_content",)) and isinstance(value, (list, tuple, set, frozenset)):
        short = {"application/json": "json", "application/x-json": "json"}
        return sorted({short.get(str(each), str(each)) for each in value})
    if name in {"result_expires", "task_time_limit", "task_soft_time_limit"} and isinstance(value, str):
        return _seconds(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def show(value: Any) -> str:
    """A value for people."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _seconds(text: str) -> Any:
    """``1 day, 0:00:00``, which is how a worker answers a timedelta, in seconds."""
    days, _, clock = text.rpartition(" day")
    try:
        hours, minutes, seconds = clock.removeprefix("s").removeprefix(",").strip().split(":")
        total = int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return text
    return int(total) if total.is_integer() else total

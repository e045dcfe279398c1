"""Celery's loader for a deployment: what ``CELERY_CONFIG_MODULE`` declares wins over the application's own settings.

Celery reads that module only for an application that does not configure itself. One with
``config_from_object("django.conf:settings", namespace="CELERY")`` would never see it. The environment variable
``CELERY_LOADER=celery_hybrid.loader:Loader`` names this loader for every application of a process, without a change of
its code; what the module does not set stays the application's.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Any

from celery.app.utils import filter_hidden_settings
from celery.loaders.app import AppLoader

logger = logging.getLogger(__name__)


class Loader(AppLoader):  # type: ignore[misc]
    """Applies the declared settings when the application has configured itself, and again when its modules are loaded.

    Attributes:
        overridden: settings that the application had set otherwise: its value and the declared one, by name. Passwords
            are hidden.
    """

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.overridden: dict[str, tuple[Any, Any]] = {}
        self._connected = False

    @property
    def conf(self) -> Any:
        """Return the application's own settings, which Celery asks for before it sends ``on_after_configure``."""
        # Not in the constructor: Django's fix-up makes the loader before the application has that signal.
        if not self._connected:
            self._connected = True
            self.app.on_after_configure.connect(self._after_configure, weak=False)
        return super().conf

    def import_default_modules(self) -> Any:
        """Import the modules with tasks; what they have set is overridden as well."""
        modules = super().import_default_modules()
        self._declare(self.app.conf)
        return modules

    def on_worker_init(self) -> None:
        """Log what was overridden."""
        super().on_worker_init()
        if self.overridden:
            logger.info("Declared settings win over the application's: %s", "; ".join(self.differences()))

    def differences(self) -> list[str]:
        """Return a phrase for each setting that was overridden."""
        return [f"{name} is {value!r}, was {own!r}" for name, (own, value) in sorted(self.overridden.items())]

    def _after_configure(self, source: Any, **_: Any) -> None:
        self._declare(source)

    def _declare(self, conf: Any) -> None:
        declared = declared_settings()
        for name, value in declared.items():
            own = conf.get(name)
            if _is_set(conf, name) and _plain(own) != _plain(value):
                shown = [filter_hidden_settings({name: each})[name] for each in (own, value)]
                self.overridden.setdefault(name, (shown[0], shown[1]))
        conf.update(declared)
        # Before 5.7 Celery looks for a name with the application's namespace in all layers first.
        conf.update({key: value for name, value in declared.items() for key in conf._to_keys(name) if _has(conf, key)})


def declared_settings() -> dict[str, Any]:
    """Return the settings of the module that ``CELERY_CONFIG_MODULE`` names; none when it names none."""
    name = os.environ.get("CELERY_CONFIG_MODULE")
    if not name:
        return {}
    values = vars(importlib.import_module(name))
    return {key: value for key, value in values.items() if key[0].islower() and not isinstance(value, ModuleType)}


def _is_set(conf: Any, name: str) -> bool:
    """Return whether the application has set *name*; the last layer of its settings are Celery's defaults."""
    return any(_has(conf, key) for key in conf._to_keys(name))


def _has(conf: Any, key: str) -> bool:
    return any(conf._key(key) in layer for layer in conf.maps[:-1])


def _plain(value: Any) -> Any:
    """Return a setting so that a tuple, a set and a list compare equal."""
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else value

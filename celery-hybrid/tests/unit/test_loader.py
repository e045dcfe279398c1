from __future__ import annotations

import sys
import types

import pytest
from celery import Celery

LOADER = "celery_hybrid.loader:Loader"


@pytest.fixture
def declared(monkeypatch):
    """The module that CELERY_CONFIG_MODULE names."""
    module = types.ModuleType("declared_settings")
    module.task_acks_late = True
    module.task_default_queue = "celery"
    module.accept_content = ["json"]
    module.broker_url = "redis://celery:declared@broker/0"
    module._private = 1
    module.os = sys
    monkeypatch.setitem(sys.modules, "declared_settings", module)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "declared_settings")
    monkeypatch.setenv("CELERY_LOADER", LOADER)
    return module


def django_settings(monkeypatch, **values):
    module = types.ModuleType("django_settings")
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, "django_settings", module)


def test_declared_settings_win_over_those_with_a_namespace(declared, monkeypatch):
    django_settings(
        monkeypatch, CELERY_TASK_DEFAULT_QUEUE="shop", CELERY_TASK_TIME_LIMIT=5, SECRET_KEY="s", DEBUG=False
    )
    app = Celery("shop", set_as_current=False)
    app.config_from_object("django_settings", namespace="CELERY")
    assert app.conf.task_default_queue == "celery"
    assert app.conf.task_acks_late is True
    # Not declared: the application's.
    assert app.conf.task_time_limit == 5
    assert app.amqp.queues.keys() == {"celery"}
    assert app.loader.differences() == ["task_default_queue is 'celery', was 'shop'"]


def fix_up(app):
    """Touch the loader while the application is made, as Celery's own for Django does."""
    app.loader.now = lambda utc=True: None


def test_declared_settings_win_when_a_fix_up_makes_the_loader_early(declared):
    app = Celery("shop", fixups=[f"{__name__}:fix_up"], set_as_current=False)
    app.conf.task_acks_late = False
    assert app.conf.task_acks_late is True


@pytest.mark.parametrize("when", ["before", "after"])
def test_declared_settings_win_over_changes_in_code(declared, when):
    app = Celery("shop", broker="redis://own:secret@elsewhere/0", set_as_current=False)
    if when == "after":
        assert app.conf.task_acks_late is True
    app.conf.update(task_acks_late=False, accept_content=("json",))
    app.loader.init_worker()
    assert app.conf.task_acks_late is True
    assert app.conf["broker_url"] == "redis://celery:declared@broker/0"
    assert set(app.loader.overridden) == {"task_acks_late", "broker_url"}
    assert "secret" not in str(app.loader.overridden)
    assert "declared@" not in str(app.loader.overridden)


def test_a_task_is_bound_with_the_declared_settings(declared, monkeypatch):
    django_settings(monkeypatch, CELERY_TASK_ACKS_LATE=False)
    app = Celery("shop", set_as_current=False)
    app.config_from_object("django_settings", namespace="CELERY")

    @app.task(name="shop.nothing")
    def nothing():
        pass

    assert nothing.acks_late is True


def test_what_is_overridden_is_logged_when_a_worker_starts(declared, caplog):
    app = Celery("shop", set_as_current=False)
    app.conf.task_default_queue = "shop"
    with caplog.at_level("INFO"):
        app.loader.init_worker()
    assert "task_default_queue is 'celery', was 'shop'" in caplog.text


def test_an_application_without_a_deployment_keeps_its_settings(monkeypatch):
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    monkeypatch.setenv("CELERY_LOADER", LOADER)
    app = Celery("shop", set_as_current=False)
    app.conf.task_default_queue = "shop"
    assert app.conf.task_default_queue == "shop"
    assert app.loader.differences() == []

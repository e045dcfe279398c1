"""The trial of an application: imported as a worker imports it, judged before anything that runs is changed."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery", reason="the trial runs in the workers' environment, where Celery is")

SOURCES = Path(__file__).parents[4] / "celery-hybrid" / "src"
PROGRAM = (SOURCES / "celery_hybrid" / "release" / "trial.py").read_text()
PASSWORD = "Pa55:word@/word"
URL = "redis://celery:Pa55%3Aword%40%2Fword@127.0.0.1:1/0"
SETTINGS = """
import os as _os
task_serializer = 'json'
accept_content = ['json']
task_acks_late = True
"""
GOOD = "from celery import Celery\napp = Celery('shop')\n@app.task(name='shop.add')\ndef add(x, y): return x + y\n"
# The deployment's loader is not in this process, as when an application has one of its own.
OWN_LOADER = "app.loader_cls = 'celery.loaders.app:AppLoader'\n"
DJANGO = """
import sys, types
from celery import Celery
settings = types.ModuleType('shop_settings')
settings.CELERY_TASK_ACKS_LATE = False
settings.CELERY_TASK_DEFAULT_QUEUE = 'shop'
settings.CELERY_BROKER_URL = 'redis://:0therPa55@elsewhere/0'
sys.modules['shop_settings'] = settings
app = Celery('shop')
app.config_from_object('shop_settings', namespace='CELERY')
"""


def run(program: str, folder: Path, **changes: Any) -> Any:
    """Run the program as the role does, in another process; return its answer."""
    request = {
        "app": "shop",
        "config": SETTINGS,
        "directory": str(folder),
        "environment": {
            "CELERY_BROKER_URL": URL,
            "CELERY_RESULT_BACKEND": "cache+memory://",
            "CELERY_LOADER": "celery_hybrid.loader:Loader",
            "HOME": str(folder),
        },
        "house_rules": ["task_serializer", "accept_content", "task_acks_late"],
        "queues": ["celery"],
        "servers": False,
        **changes,
    }
    encoded = base64.b64encode(json.dumps(request).encode()).decode()
    done = subprocess.run(
        [sys.executable, "-I", "-"],
        input=f"{program}\nsys.path.append({str(SOURCES)!r})\nmain('{encoded}')\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer if changes.get("whole") else answer["problems"]


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    def try_it(source: str, **changes: Any) -> Any:
        (tmp_path / "shop.py").write_text(source)
        # Any backend of Celery itself will do here; that it must be celery-hybrid's has a test of its own.
        return run(PROGRAM.replace('"celery_hybrid"', '"celery."'), tmp_path, **changes)

    return try_it


def test_a_good_application_has_no_problem(trial: Any) -> None:
    assert trial(GOOD) == []


def test_settings_of_the_application_that_differ_are_overridden_and_shown(trial: Any) -> None:
    task = "@app.task(name='shop.add')\ndef add(x, y): return x + y\n"
    answer = trial(DJANGO + task, config=SETTINGS + "task_default_queue = 'celery'\n", whole=True)
    assert answer["problems"] == []
    assert answer["overridden"] == [
        "task_acks_late is True, was False in the application",
        "task_default_queue is 'celery', was 'shop' in the application",
    ]
    assert "0therPa55" not in str(answer)


def test_what_the_application_prints_is_not_the_answer(trial: Any) -> None:
    assert trial(f"print('{{}}')\n{GOOD}") == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "import no_such_module\n",
            ["does not import", "no_such_module", "shop.py, line 1", "worker_app_requirements"],
        ),
        ("def f(:\n", ["does not import", "SyntaxError"]),
        ("raise SystemExit(3)\n", ["does not import", "SystemExit"]),
        ("x = 1\n", ["holds no Celery application", "worker_app"]),
        (
            GOOD + OWN_LOADER + "app.conf.task_acks_late = False\n",
            ["overrides", "task_acks_late is False, declared True"],
        ),
        (GOOD + OWN_LOADER + "app.conf.accept_content = ['json', 'pickle']\n", ["overrides", "accept_content"]),
        (GOOD + "app.conf.task_routes = {'shop.*': {'queue': 'slwo'}}\n", ["shop.*", "'slwo'", "worker_instances"]),
        ("import os\nos.environ['SECRET_KEY']\n", ["KeyError: 'SECRET_KEY'", "worker_environment"]),
        (GOOD.replace("'shop.add'", "'shop.add', queue='slwo'"), ["shop.add", "'slwo'", "worker_instances"]),
        (f"raise RuntimeError('cannot reach {URL} {PASSWORD}')\n", ["RuntimeError"]),
    ],
)
def test_bad_application_fails_with_a_reason(trial: Any, source: str, words: list[str]) -> None:
    problems = trial(source)
    assert len(problems) == 1, problems
    assert not [word for word in words if word not in problems[0]], problems


def test_an_application_that_is_not_there(trial: Any) -> None:
    assert "'elsewhere' (worker_app) does not import" in trial(GOOD, app="elsewhere")[0]


def test_settings_that_do_not_load(trial: Any) -> None:
    (problem,) = trial(GOOD, config="task_routes = nowhere\n")
    assert "the settings do not load: NameError" in problem


def test_an_application_that_hangs_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import time\ntime.sleep(60)\n")
    (problem,) = run(PROGRAM.replace("SECONDS = 90", "SECONDS = 1"), tmp_path)
    assert "not imported after" in problem


def test_results_that_would_go_elsewhere_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(GOOD)
    (problem,) = run(PROGRAM, tmp_path)
    assert "would not go to RabbitMQ" in problem


def test_a_result_backend_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(GOOD)
    environment = {"CELERY_BROKER_URL": URL, "CELERY_RESULT_BACKEND": "nosuch://u:Pa55%3Aword%40%2Fword@h/v"}
    (problem,) = run(PROGRAM, tmp_path, environment=environment)
    assert "worker_hybrid_requirement" in problem


def test_servers_that_do_not_answer_are_named(trial: Any, tmp_path: Path) -> None:
    environment = {"CELERY_BROKER_URL": URL, "CELERY_RESULT_BACKEND": "cache+memory://"}
    problems = trial(GOOD, servers=True, environment=environment)
    assert "cannot log in to Redis" in problems[0]
    assert "worker_broker_url" in problems[0]


@pytest.fixture
def module() -> Any:
    spec = importlib.util.spec_from_loader("trial", loader=None)
    assert spec
    module = importlib.util.module_from_spec(spec)
    exec(compile(PROGRAM, "trial.py", "exec"), module.__dict__)  # noqa: S102
    return module


class Broker:
    """An application's way to a Redis that holds what kombu would put there."""

    priority_steps = (0, 3)
    unacked_key = "unacked"
    unacked_index_key = "unacked_index"

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks
        self.client = pytest.importorskip("fakeredis").FakeRedis()
        self.default_channel = self

    def connection_for_write(self) -> Any:
        return contextlib.nullcontext(self)

    def _q_for_pri(self, queue: str, priority: int) -> str:
        return f"{queue}:{priority}" if priority else queue

    def message(self, task: str) -> dict[str, Any]:
        return {"body": "W10=", "headers": {"task": task}, "properties": {}}


def test_tasks_that_wait_and_are_not_in_the_application_are_counted(module: Any) -> None:
    broker = Broker("shop.add")
    for key, task in [("celery", "shop.old"), ("celery:3", "shop.old"), ("celery", "shop.add"), ("other", "shop.gone")]:
        broker.client.lpush(key, json.dumps(broker.message(task)))
    broker.client.zadd("unacked_index", {"tag": 1, "acknowledged meanwhile": 2})
    broker.client.hset("unacked", "tag", json.dumps([broker.message("shop.old"), "", "celery"]))
    broker.client.lpush("celery", "no message")
    (sentence,) = module.orphans(broker, ["celery"])
    for word in ("no task 'shop.old'", "has 3 of its messages", "queue 'celery'", "1 unacknowledged", "2 waiting"):
        assert word in sentence


def test_an_application_that_has_all_tasks_leaves_no_orphan(module: Any) -> None:
    broker = Broker("shop.add")
    for _ in range(2500):
        broker.client.lpush("celery", json.dumps(broker.message("shop.add")))
    assert module.orphans(broker, ["celery"]) == []
    broker.client.rpush("celery", json.dumps(broker.message("shop.old")))
    assert len(module.orphans(broker, ["celery"])) == 1


def test_a_queue_that_is_too_long_to_look_through_is_a_problem(module: Any) -> None:
    broker = Broker("shop.add")
    broker.client.lpush("celery", json.dumps(broker.message("shop.add")))
    module.QUEUE_SECONDS = -1
    with pytest.raises(module.TrialError, match="could not read all messages of queue 'celery'"):
        module.orphans(broker, ["celery"])

"""The templates of the worker role, rendered by Ansible with the role's own defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[4]
ROLE = ROOT / "roles" / "worker"
PLAYBOOK = f"""
- hosts: worker1
  gather_facts: false
  vars_files:
    - defaults.yml
    - {ROLE}/vars/main.yml
  tasks:
    - ansible.builtin.template:
        src: "{{{{ item }}}}.j2"
        dest: "{{{{ out }}}}/{{{{ item | basename }}}}"
        mode: '0600'
      vars:
        __worker_item: "{{{{ worker_instances | first }}}}"
        __worker_options: []
      loop:
        - etc/celery/celeryconfig.py
        - etc/celery/celery.env
        - etc/celery/worker@.env
        - etc/systemd/system/celery-worker@.service
        - etc/systemd/system/celery-beat.service
"""
INSTANCES = [{"name": "default", "queues": ["celery"], "concurrency": 3}]
INVENTORY = {
    "all": {
        "children": {
            "redis": {"hosts": {"broker1": {"ansible_host": "10.0.0.11"}}},
            "rabbitmq": {"hosts": {"results1": {"rabbitmq_partitions": 8}}},
            "worker": {
                "hosts": {
                    "worker1": {"ansible_connection": "local", "worker_instances": INSTANCES},
                    "worker2": {"worker_instances": [{"name": "x", "queues": ["elsewhere"]}]},
                }
            },
        },
        "vars": {
            "redis_password": "redis:pass@word/100%",
            "rabbitmq_worker_password": 'rabbit"$pass\\word',
            "ansible_python_interpreter": sys.executable,
        },
    }
}


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def run(**variables: Any) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("rendered")
        # As the role's defaults the inventory may override them.
        defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
        defaults = {name: value for name, value in defaults.items() if name != "worker_instances"}
        (folder / "defaults.yml").write_text(yaml.safe_dump(defaults))
        (folder / "play.yml").write_text(PLAYBOOK)
        (folder / "templates").symlink_to(ROLE / "templates")
        (folder / "inventory.json").write_text(json.dumps(INVENTORY))
        extra = {"out": str(folder), "worker_app": "payments", **variables}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "inventory.json")),
                *(str(folder / "play.yml"), "-e", json.dumps(extra)),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}

    return run


@pytest.fixture(scope="module")
def rendered(render: Any) -> dict[str, str]:
    return render()


def settings(text: str) -> dict[str, Any]:
    """Return the settings of a rendered module, without what needs Celery."""
    start, end = text.index("# Programs that read"), text.index("class _JournalFormatter")
    values: dict[str, Any] = {}
    exec(text[start:end], {"_os": os, "_Queue": lambda name, **rest: {"name": name, **rest}}, values)  # noqa: S102
    return values


def test_settings(rendered: dict[str, str]) -> None:
    values = settings(rendered["celeryconfig.py"])
    assert values["accept_content"] == values["result_accept_content"] == ["json"]
    assert values["task_acks_late"] is True
    assert values["worker_prefetch_multiplier"] == 1
    assert values["result_backend_transport_options"] == {"partitions": 8}
    assert values["broker_pool_limit"] == 3 + 4
    assert values["broker_transport_options"]["visibility_timeout"] > values["task_time_limit"]
    assert values["broker_transport_options"]["priority_steps"] == [0, 3, 6, 9]
    # Queues of other hosts are declared here as well.
    assert values["task_queues"] == [
        {"name": name, "exchange": name, "routing_key": name} for name in ("celery", "elsewhere")
    ]
    # kombu's default separator, which clients use that know only the broker's URL.
    assert "sep" not in values["broker_transport_options"]
    # Not declared, so that the application's own count.
    assert not {"task_default_priority", "task_routes"} & set(values)


def test_declared_routes_and_priority_are_written(render: Any) -> None:
    files = render(worker_task_routes={"shop.*": {"queue": "celery"}}, worker_settings={"task_default_priority": 0})
    values = settings(files["celeryconfig.py"])
    assert values["task_routes"] == {"shop.*": {"queue": "celery"}}
    assert values["task_default_priority"] == 0


def test_no_secret_and_no_address_is_in_the_settings(rendered: dict[str, str]) -> None:
    for name in ("celeryconfig.py", "worker@.env", "celery-worker@.service", "celery-beat.service"):
        assert not [
            word for word in ("redis:pass", 'rabbit"', "10.0.0.11", "results1", "://10") if word in rendered[name]
        ]


def test_environment_holds_both_urls(rendered: dict[str, str]) -> None:
    lines = rendered["celery.env"].splitlines()
    assert 'CELERY_BROKER_URL="redis://celery:redis%3Apass%40word%2F100%25@10.0.0.11:6379/0"' in lines
    assert 'CELERY_RESULT_BACKEND="amqp://worker:rabbit%22%24pass%5Cword@results1:5672/celery"' in lines


def test_instance(rendered: dict[str, str]) -> None:
    assert rendered["worker@.env"].splitlines()[-5:] == [
        'WORKER_NODE="default@worker1"',
        'WORKER_QUEUES="celery"',
        'WORKER_CONCURRENCY="3"',
        'WORKER_POOL="prefork"',
        'WORKER_OPTIONS=""',
    ]


@pytest.mark.parametrize(
    "line",
    [
        "KillMode=mixed",
        "Type=notify",
        "WatchdogSec=120",
        "KillSignal=SIGTERM",
        "TimeoutStopSec=90",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "OOMPolicy=continue",
        "NoNewPrivileges=yes",
        "MemoryMax=80%",
        "TasksMax=2048",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=~@privileged @resources",
    ],
)
def test_unit(rendered: dict[str, str], line: str) -> None:
    assert line in rendered["celery-worker@.service"].splitlines()


def test_single_fences_can_be_taken_away(render: Any) -> None:
    files = render(
        worker_sandbox_disabled=["MemoryDenyWriteExecute", "SystemCallFilter"], worker_read_write_paths=["/srv/a"]
    )
    unit = files["celery-worker@.service"]
    assert "MemoryDenyWriteExecute" not in unit
    assert "SystemCallFilter" not in unit
    assert "ReadWritePaths=/srv/a" in unit.splitlines()


def test_further_settings_are_written(render: Any) -> None:
    files = render(worker_settings={"task_compression": "gzip"}, worker_loggers={"payments": "DEBUG"})
    assert settings(files["celeryconfig.py"])["task_compression"] == "gzip"
    assert "in {'payments': 'DEBUG'}.items()" in files["celeryconfig.py"]


PROGRAM = """
import json, logging, sys
sys.path.insert(0, sys.argv[1])
from celery import Celery
from celery.app import trace
app = Celery('shop', set_as_current=False)
app.finalize()
app.log.setup_logging_subsystem(loglevel=20)
task = {'name': 'shop.add', 'id': '0b3d', 'return_value': '3', 'runtime': 0.1, 'args': '()', 'kwargs': '{}'}
logging.getLogger('celery.worker.strategy').info(trace.LOG_RECEIVED, task)
logging.getLogger('celery.app.trace').info(trace.LOG_SUCCESS, task)
logging.getLogger('celery.worker.consumer.consumer').error('Received invalid task message: no task')
logging.getLogger('celery_hybrid.worker').warning('one\\ntwo')
logging.getLogger('payments').debug('seen')
print(json.dumps({
    'broker': app.conf['broker_url'],
    'results': app.conf.get('result_backend'),
    'queues': [queue.name for queue in app.conf.task_queues],
    'routed': app.amqp.router.route({}, 'shop.add')['queue'].name,
}))
"""


@pytest.fixture(scope="module")
def lines(render: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Import the settings as a worker does; return what it writes, and at last what other programs read."""
    pytest.importorskip("celery", reason="the settings are imported where Celery is")
    folder = tmp_path_factory.mktemp("imported")
    (folder / "celeryconfig.py").write_text(
        render(worker_loggers={"payments": "DEBUG", "celery": "INFO"})["celeryconfig.py"]
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PYTHONPATH": str(ROOT / "celery-hybrid" / "src"),
            "CELERY_CONFIG_MODULE": "celeryconfig",
            "CELERY_BROKER_URL": "redis://broker/0",
            "CELERY_RESULT_BACKEND": "cache+memory://",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_settings_have_the_forms_that_other_programs_read(lines: list[str]) -> None:
    assert json.loads(lines[-1]) == {
        "broker": "redis://broker/0",
        "results": "cache+memory://",
        "queues": ["celery", "elsewhere"],
        "routed": "celery",
    }


def test_log_lines_carry_their_level_and_the_form_that_logtool_reads(lines: list[str]) -> None:
    logtool = pytest.importorskip("celery.bin.logtool")
    found = logtool.Audit()
    assert [line[:3] for line in lines[:-1]] == ["<6>", "<6>", "<3>", "<4>", "<4>", "<7>"]
    for line in lines[:-1]:
        # As journalctl shows it.
        found.feed(line[3:].rstrip())
    assert found.report()["task"] == {
        "types": [("shop.add", 1)],
        "total": 1,
        "errors": 0,
        "completed": 1,
        "succeeded": 1,
    }
    assert lines[3].endswith("WARNING/MainProcess] celery_hybrid.worker: one")

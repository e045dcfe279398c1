"""Try an application with settings and addresses that are not in use yet.

The ``worker`` role pipes this program, with a call of :func:`main` after it, to the Python of a new virtual
environment, as the user of the workers. It imports the application as a worker would, compares
what the application's settings are with what is declared, and logs in to both servers. When the new
environment is not the one in use, it looks for queued tasks that the application does not have. The last
line of its output is ``{"problems": [...], "orphans": [...], "overridden": [...], "version": ..., "tasks": [...]}``,
with a message for each problem, for each task that no worker could run, and for each setting of the application that
the declared one has replaced.
"""

from __future__ import annotations

import base64
import importlib.machinery
import importlib.metadata
import json
import os
import signal
import ssl
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

SECONDS = 90
CONNECT_SECONDS = 5
QUEUE_SECONDS = 120
BATCH = 1000


class TrialError(Exception):
    """The trial cannot go on; the message is the sentence for the reader."""


def set_environment(environment: dict[str, str]) -> None:
    """Set the environment of the workers, and nothing else. It holds secrets, so it comes by standard input."""
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "CELERY_CONFIG_MODULE": "celeryconfig"})
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.dont_write_bytecode = True


def settings_module(text: str) -> types.ModuleType:
    """Make the module ``celeryconfig`` out of its text, so that it need not be on the disk."""
    module = types.ModuleType("celeryconfig")
    module.__spec__ = importlib.machinery.ModuleSpec("celeryconfig", loader=None)
    sys.modules["celeryconfig"] = module
    try:
        exec(compile(text, "celeryconfig.py", "exec"), module.__dict__)  # noqa: S102
    except Exception as exc:
        raise TrialError(
            f"the settings do not load: {last_line(exc)}. Correct worker_settings, or worker_packages if Celery "
            "itself is missing."
        ) from exc
    return module


def last_line(exc: BaseException) -> str:
    """Return the last line of a traceback, and where it happened."""
    line = traceback.format_exception_only(type(exc), exc)[-1].strip()
    inner = ("importlib", "/celery/", "/kombu/", "<stdin>")
    frames = [
        frame for frame in traceback.extract_tb(exc.__traceback__) if not any(name in frame.filename for name in inner)
    ]
    if frames and not isinstance(exc, SyntaxError):
        line += f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return line


def load(name: str) -> Any:
    """Return the application object, found and loaded as a worker finds and loads it."""
    from celery import Celery
    from celery.app.utils import find_app

    try:
        found = find_app(name)
    except AttributeError as exc:
        if exc.__traceback__ and last_line(exc).startswith("AttributeError: module"):
            raise TrialError(
                f"the module {name!r} (worker_app) holds no Celery application: {last_line(exc)}. "
                "Name the module that does, or module:attribute."
            ) from exc
        raise TrialError(not_imported(name, exc)) from exc
    except BaseException as exc:
        raise TrialError(not_imported(name, exc)) from exc
    if not isinstance(found, Celery):
        raise TrialError(
            f"the module {name!r} (worker_app) holds a {type(found).__name__}: "
            "name the module that does, or module:attribute."
        )
    try:
        found.loader.import_default_modules()
        found.finalize()
    except BaseException as exc:
        raise TrialError(not_imported(name, exc)) from exc
    return found


def not_imported(name: str, exc: BaseException) -> str:
    """Return the sentence about an application that does not import."""
    remedy = "Correct worker_app, worker_app_source or the application."
    if isinstance(exc, ImportError):
        remedy = f"Add what is missing to worker_app_requirements, or c{remedy[1:]}"
    elif isinstance(exc, KeyError) or "environ" in str(exc).lower():
        remedy = "If it is a variable of the environment, such as a secret key, add it to worker_environment."
    return f"the application {name!r} (worker_app) does not import: {last_line(exc)}. {remedy}"


def compare(app: Any, declared: types.ModuleType, house_rules: list[str]) -> list[str]:
    """Return a sentence when house rules do not hold although the declared settings were applied."""
    wrong = [
        f"{name} is {app.conf.get(name)!r}, declared {getattr(declared, name)!r}"
        for name in house_rules
        if plain(app.conf.get(name)) != plain(getattr(declared, name))
    ]
    if not wrong:
        return []
    return [
        f"the application overrides what is declared: {'; '.join(wrong)}. Remove a loader of its own "
        "(Celery(loader=…)), or the code that sets these after the import: with them tasks or results would be lost."
    ]


def overridden(app: Any) -> list[str]:
    """Return a sentence for each setting of the application that the declared one has replaced."""
    differences: list[Any] = getattr(app.loader, "differences", list)()
    return [f"{difference} in the application" for difference in differences]


def plain(value: Any) -> Any:
    """Return a setting so that tuple and list compare equal."""
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else value


def routes(app: Any, queues: list[str]) -> list[str]:
    """Return a sentence for each task of the application that asks for a queue which is not declared."""
    wanted = {f"the task {name}": getattr(task, "queue", None) for name, task in sorted(app.tasks.items())}
    own = app.conf.task_routes
    for name, route in own.items() if isinstance(own, dict) else ():
        wanted[f"task_routes of the application for {name}"] = route.get("queue") if isinstance(route, dict) else route
    return [
        f"{who} asks for the queue {queue!r}, which no worker consumes: "
        "add it to an instance of worker_instances, or to worker_queues when it is consumed elsewhere."
        for who, queue in wanted.items()
        if isinstance(queue, str) and queue not in queues
    ]


def masked(text: str, urls: list[str]) -> str:
    """Return a text without the passwords of the URLs, in whatever form they are in it."""
    for url in (part for several in urls for part in several.split(";")):
        password = urlsplit(url).password or ""
        for form in (password, unquote(password)):
            if form:
                text = text.replace(form, "********")
    return text


def reason_of(exc: Exception) -> str:
    """Return what went wrong, as part of a sentence."""
    return f"{type(exc).__name__}: {str(exc).strip().rstrip('.')}"


def about_tls(exc: Exception, role: str) -> str:
    """Return what else to look at, when it is TLS that failed."""
    if "ssl" not in repr(exc).lower() and "certificate" not in str(exc).lower():
        return ""
    return f"; for TLS look at {role}_tls_enabled, {role}_tls_ca, {role}_tls_names and worker_tls_certificate"


def login_broker(app: Any, url: str) -> str:
    """Log in to Redis; return the problem, or nothing."""
    del url
    options = {
        **app.conf.broker_transport_options,
        "max_retries": 1,
        "socket_timeout": CONNECT_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
    }
    with app.connection_for_write(transport_options=options) as connection:
        try:
            connection.default_channel.client.ping()
        except Exception as exc:
            return (
                f"cannot log in to Redis: {reason_of(exc)}. Correct redis_password (or "
                f"worker_broker_url), or run the redis role, which sets them{about_tls(exc, 'redis')}."
            )
    return ""


def login_results(app: Any, url: str) -> str:
    """Log in to RabbitMQ; return the problem, or nothing."""
    from kombu import Connection

    problems = []
    for single in url.split(";"):
        parts = urlsplit(single)
        tls: Any = False
        if parts.scheme == "amqps":
            options = {**app.conf.result_backend_transport_options, **dict(parse_qsl(parts.query))}
            files = {name: options[name] for name in ("ca_certs", "certfile", "keyfile") if options.get(name)}
            tls = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": parts.hostname, **files}
        connection = Connection(parts._replace(query="").geturl(), ssl=tls, connect_timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except Exception as exc:
            problems.append(
                f"cannot log in to RabbitMQ: {reason_of(exc)}. Correct rabbitmq_worker_password and rabbitmq_vhost "
                f"(or worker_result_backend), or run the rabbitmq role, which sets them{about_tls(exc, 'rabbitmq')}."
            )
        else:
            return ""
        finally:
            connection.release()
    return problems[0]


def backend(app: Any, url: str) -> list[str]:
    """Return a sentence when the result backend does not load, or is not the one that the URL asks for."""
    scheme = url.split(":", 1)[0]
    try:
        loaded = app.backend
    except Exception as exc:
        return [
            f"the result backend for {scheme}:// does not load: {masked(last_line(exc), [url])}. "
            "Install celery-hybrid: leave worker_hybrid_requirement unset for the one of this collection."
        ]
    module = type(loaded).__module__
    if not module.startswith("celery_hybrid"):
        return [
            f"the result backend is {module}.{type(loaded).__name__}, so results would not go to RabbitMQ's archive: "
            "the application sets a result backend of its own. Remove it (Celery(backend=…), result_backend)."
        ]
    return []


def waiting(channel: Any, queues: list[str]) -> Iterator[tuple[str, str, str | bytes]]:
    """Yield where, queue and message of every task in Redis: waiting, or in the hands of a worker.

    New messages come in on the left, so that reading to the right misses none. A message that is taken meanwhile is
    found in ``unacked``, which is read last.
    """
    deadline = time.monotonic() + QUEUE_SECONDS
    for queue in queues:
        for priority in channel.priority_steps:
            key, start = channel._q_for_pri(queue, priority), 0
            while batch := channel.client.lrange(key, start, start + BATCH - 1):
                yield from (("waiting", queue, element) for element in batch)
                start += BATCH
                if time.monotonic() > deadline:
                    raise TrialError(
                        f"could not read all messages of queue {queue!r} within {QUEUE_SECONDS} s; whether "
                        "the new version has all of their tasks is not known. Wait until the queue is shorter."
                    )
    # Read here, with no other rights than a worker has: this program also runs where an older celery-hybrid is
    # installed, or none, so it cannot use celery_hybrid.broker.unacknowledged.
    tags = channel.client.zrange(channel.unacked_index_key, 0, -1)
    for start in range(0, len(tags), BATCH):
        with channel.client.pipeline(transaction=False) as several:
            for tag in tags[start : start + BATCH]:
                several.hget(channel.unacked_key, tag)
            values = several.execute()
        for value in filter(None, values):
            try:
                message, _, queue = json.loads(value)
            except ValueError:
                continue
            if queue in queues:
                yield "unacknowledged", queue, json.dumps(message)


def orphans(app: Any, queues: list[str]) -> list[str]:
    """Return a sentence for each task that is in Redis and not in the application."""
    missing: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], Counter[str]] = {}
    with app.connection_for_write() as connection:
        for place, queue, element in waiting(connection.default_channel, queues):
            try:
                name = json.loads(element)["headers"]["task"]
            except (ValueError, LookupError, TypeError):
                continue  # no task; the worker that takes it says so
            if name not in app.tasks:
                missing[name, queue] += 1
                places.setdefault((name, queue), Counter())[place] += 1
    return [
        f"this version has no task {name!r}, and queue {queue!r} has {count} of its messages "
        f"({', '.join(f'{number} {place}' for place, number in sorted(places[name, queue].items()))}): "
        "no worker could run them."
        for (name, queue), count in sorted(missing.items())
    ]


def version_of(module: str) -> str:
    """Return name and version of what an application was installed from."""
    found = importlib.metadata.packages_distributions().get(module.split(":")[0].split(".")[0], [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(found))


def trial(request: dict[str, Any]) -> dict[str, Any]:
    """Return what the application is, and a sentence for every problem that it or a server has."""
    environment = request["environment"]
    urls = [environment["CELERY_BROKER_URL"], environment["CELERY_RESULT_BACKEND"]]
    set_environment(environment)
    sys.path.insert(0, request["directory"])
    answer: dict[str, Any] = {"problems": [], "orphans": [], "overridden": [], "version": "", "tasks": []}
    try:
        declared = settings_module(request["config"])
        app = load(request["app"])
        signal.alarm(0)
        answer["version"] = version_of(request["app"])
        answer["tasks"] = sorted(name for name in app.tasks if not name.startswith("celery."))
        answer["overridden"] = [masked(sentence, urls) for sentence in overridden(app)]
        problems = [*compare(app, declared, request["house_rules"]), *routes(app, request["queues"])]
        problems += backend(app, urls[1])
        if request["servers"] and not problems:
            problems += filter(None, (login_broker(app, urls[0]), login_results(app, urls[1])))
        # The environment in use would do no better.
        if request["servers"] and request.get("consumed") and not problems and not in_use(request["link"]):
            answer["orphans"] = orphans(app, request["consumed"])
    except TrialError as exc:
        problems = [str(exc)]
    answer["problems"] = [masked(problem, urls) for problem in problems]
    return answer


def in_use(link: str) -> bool:
    """Return whether this Python's environment is the one that a symbolic link leads to."""
    return os.path.realpath(link) == os.path.realpath(sys.prefix)


def give_up(*_: Any) -> NoReturn:
    """End an import that hangs."""
    raise TrialError(
        f"the application (worker_app) was not imported after {SECONDS} s: it must not block during its import."
    )


def main(encoded: str) -> None:
    """Run the trial that is described by base64 of JSON, and print what came out."""
    output = os.dup(1)
    # Whatever the application prints must not be taken for the answer.
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    answer = trial(json.loads(base64.b64decode(encoded)))
    os.write(output, (json.dumps(answer) + "\n").encode())
    # An application may have started threads.
    os._exit(0)

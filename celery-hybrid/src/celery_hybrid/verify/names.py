"""The names of all checks. They are stable: scripts and dashboards may rely on them.

``[queue]`` stands for one check per queue, ``settings.*`` may have more, for each setting that is ``expected``.
"""

from __future__ import annotations

#: Names, in the order in which the checks run, with what each shows.
NAMES: dict[str, str] = {
    "settings.file": "the configuration module loads",
    "settings.application": "the application loads, and overrides nothing of the file",
    "settings.versions": "Celery, kombu and redis-py are new enough",
    "settings.result_expires": "results expire",
    "settings.broker_pool_limit": "connections to Redis are pooled",
    "settings.result_backend": "the URL of results leads to this package, not to rpc:// or redis://",
    "settings.visibility_timeout": "no task can run for longer than Redis waits before it delivers it again",
    "settings.task_serializer": "tasks are JSON",
    "settings.result_serializer": "results are JSON",
    "settings.accept_content": "nothing but JSON is accepted",
    "settings.result_accept_content": "nothing but JSON is accepted as a result",
    "settings.timezone": "UTC",
    "settings.enable_utc": "UTC",
    "settings.task_acks_late": "a task is acknowledged when it is done",
    "settings.worker_prefetch_multiplier": "a worker takes no more than it can run",
    "broker.reachable": "Redis accepts connections",
    "broker.authenticated": "Redis accepts user and password",
    "broker.tls": "with TLS: Redis and its name are verified, and its certificate does not end soon",
    "broker.authorised": "the user may run what Celery needs",
    "broker.cannot_evict": "Redis never deletes waiting tasks to make room",
    "broker.clock": "this host and Redis agree on the time",
    "broker.stranded": "nothing waits in Redis that no worker reads",
    "results.reachable": "RabbitMQ accepts connections",
    "results.authenticated": "RabbitMQ accepts user and password in the virtual host",
    "results.tls": "with TLS: RabbitMQ and its name are verified, and its certificate does not end soon",
    "results.exchange": "the exchange of results is there, as declared",
    "results.streams": "every stream is there, as declared",
    "results.partitions": "there are as many streams as the configuration says",
    "results.bindings": "every stream is bound",
    "results.expiry": "RabbitMQ drops old results, and not before they expire",
    "dead_letters.exchange": "the exchange of dead letters is there, as declared",
    "dead_letters.queue": "the queue of dead letters is there, as declared, and bound",
    "workers.answer": "every expected worker answers",
    "settings.workers": "every live worker of the application runs with the settings of the file",
    "workers.queues": "every queue has a worker",
    "workers.outbox": "no result and no dead letter waits for RabbitMQ",
    "workers.connections": "both servers allow the connections that the workers may need",
    "workers.bindings": "Redis has the binding of every queue",
    "canary.message": "a task message in Redis is JSON",
    "canary.roundtrip[queue]": "a task comes back with its result",
    "canary.archive[queue]": "RabbitMQ keeps that result in its stream, readable again",
    "canary.redis[queue]": "Redis keeps nothing of that result",
    "canary.forgotten[queue]": "a forgotten result is gone",
    "canary.refused[queue]": "a pickled task is refused, and kept as a dead letter",
}
#: The others cannot do without these.
NEEDED = frozenset({"settings.file", "settings.application"})


def known(name: str) -> bool:
    """Whether a check can have this name; a name before its bracket means all of them."""
    family, bracket, _ = name.partition("[")
    if name.startswith("settings.") and not bracket:
        return True
    return any(each == name or each.partition("[")[0] == family for each in NAMES)

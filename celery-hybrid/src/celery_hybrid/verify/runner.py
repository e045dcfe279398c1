"""Runs all checks of a request, in the order in which one explains the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from celery_hybrid.masking import Mask

from .broker import Broker
from .canary import Canaries
from .letters import DeadLetterFinder
from .report import Check, CheckReport
from .request import VerifyRequest
from .results import ResultChecks
from .settings import Settings, canonical
from .workers import Workers


def run(request: VerifyRequest, tell: Callable[[Check], None] = lambda _: None) -> CheckReport:
    """Verify what the request says.

    Args:
        request: what to verify.
        tell: is given each check as soon as it is answered.

    Returns:
        The report; no exception for anything that is found wrong.
    """
    mask = Mask(os.environ.values())
    letters = request.letters or {}
    mask.learn(f"amqp://:{quote(str(letters.get('password', '')), safe='')}@letters")
    report = CheckReport(mask, request.skip, tell)
    settings = Settings(request.app, request.config_module, request.python_path)
    if not settings.check_loading(report):
        return report
    app = settings.app
    # URLs may also stand in the configuration itself.
    mask.learn(app.conf.get("broker_url"), app.conf.get("result_backend"), app.conf.get("broker_read_url"))
    settings.check_values(report, request.expected)
    queues = request.queues or declared_queues(app)
    broker = Broker(app, request.connect_timeout)
    try:
        broker.check(report, request.broker_facts)
        options: dict[str, Any] = app.conf.result_backend_transport_options or {}
        results = ResultChecks(app.conf.result_backend, options, request.connect_timeout, request.results_facts)
        expires = canonical("result_expires", app.conf.result_expires)
        results.check(report, expires if isinstance(expires, (int, float)) else None)
        workers = Workers(app, request.nodes, request.inspect_timeout)
        workers.check(report, settings.agreed(request.expected), queues, declared_queues(app))
        workers.check_connections(report, request.broker_facts, request.results_facts)
        broker.check_bindings(report, sorted(set(queues) & workers.consumed))
        # Sending to an undeclared queue would create it.
        unknown = set(queues) - set(declared_queues(app)) - workers.consumed
        avoided = {*unknown, *workers.unconsumed(queues)}
        canaries = Canaries(
            app, broker, results, queues, avoided, request.canary_timeout, DeadLetterFinder(results, letters)
        )
        canaries.check(report)
    finally:
        broker.close()
    return report


def declared_queues(app: Any) -> list[str]:
    """The names of the queues that the configuration declares, or else Celery's default queue."""
    declared = app.conf.task_queues
    if not declared:
        return [str(app.conf.task_default_queue)]
    if isinstance(declared, dict):
        return [str(name) for name in declared]
    return [str(queue.name) for queue in declared]

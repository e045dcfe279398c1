"""Metrics of workers and of beat for Prometheus, counted by each process for itself.

A settings module calls :func:`install`; with an empty address that does nothing. There are no events and no remote
control in it: what a scrape shows is in the memory of the process that answers.

========================  ===========================================================================================
room                      what is counted there
========================  ===========================================================================================
:mod:`.counts`            tasks, in the main process, where the pool reports that one began or ended; for every pool
:mod:`..results.latency`  stored results, in the process that stores; children of a prefork pool write to memory that
                          they share with the main process
:mod:`.worker`            states that are read when they are asked for: the pool, the consumer, the outbox, the circuit
:mod:`.beat`              the schedule
:mod:`.exposition`        the HTTP server
========================  ===========================================================================================

Names follow https://prometheus.io/docs/practices/naming/, or are those of danihodovic's celery-exporter where it has
the metric, so that its dashboards and alerts work.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from celery import signals

from celery_hybrid.errors import OptionError

logger = logging.getLogger(__name__)

_UID = "celery_hybrid.metrics"


def install(listen: str) -> None:
    """Serve metrics from workers and beat that are started with these settings.

    Args:
        listen: ``ADDRESS:PORT``, such as ``127.0.0.1:9810``; empty serves nothing. The server has no login: name an
            address of the loopback interface, and let a proxy with TLS bring the metrics to other hosts.

    Raises:
        OptionError: it is not an address with a port.
    """
    if not listen:
        return
    address = _parsed(listen)

    def worker_begins(instance: Any, **_: Any) -> None:
        part = _part("worker")
        if part is not None:
            part.begin(instance, address)

    def beat_begins(sender: Any, **_: Any) -> None:
        part = _part("beat")
        if part is not None:
            part.begin(sender, address)

    signals.celeryd_init.connect(worker_begins, weak=False, dispatch_uid=_UID)
    signals.beat_init.connect(beat_begins, weak=False, dispatch_uid=_UID)


def _parsed(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"The address of the metrics must be ADDRESS:PORT, such as 127.0.0.1:9810, not {listen!r}.")
    return host.strip("[]"), int(port)


def _part(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != "prometheus_client":
            raise
        logger.error("No metrics are served: prometheus_client is missing. Install celery-hybrid[metrics].")
        return None

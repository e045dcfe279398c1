"""Tells systemd how a worker or beat is: ready, alive, what it does, and that it ends.

A settings module calls :func:`install`; outside of systemd that does nothing. The protocol is that of
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html. A unit needs ``Type=notify``, ``WatchdogSec=``,
``KillMode=mixed`` and ``KillSignal=SIGTERM``.

Alive is more than not dead. A thread feeds the watchdog as long as the consumer's loop comes round, or new attempts to
reach the broker are made; the pool begins what it is given, and ends what has reached its time limit; and the relay of
the outbox goes on. A worker that waits for Redis or for RabbitMQ is alive.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from celery import signals
from celery.worker import state as worker_state

from celery_hybrid.delivery.delivery import DEAD_LETTERS, RESULTS
from celery_hybrid.results.store import stores_of
from celery_hybrid.terminal import counted

logger = logging.getLogger(__name__)

#: Seconds without progress after which something is stuck. An attempt to reach the broker takes less, with its pause.
PATIENCE = 60.0
_LONGEST_PAUSE = 10.0
# What the pool gets to end in, once the running tasks were told to; nothing is put back before it has ended.
_POOL_SECONDS = 8.0


def install(drain_seconds: float = 0, patience: float = PATIENCE) -> None:
    """Connect to the signals of Celery's workers and beat.

    Args:
        drain_seconds: what running tasks get when the worker is asked to stop (SIGTERM); after it they go back to
            their queues. 0 waits for as long as they take.
        patience: seconds without progress after which something is stuck.
    """
    _Life.drain_seconds, _Life.patience = drain_seconds, patience
    signals.worker_ready.connect(_worker_ready, weak=False, dispatch_uid="celery_hybrid.worker.systemd")
    signals.worker_shutting_down.connect(_worker_stops, weak=False, dispatch_uid="celery_hybrid.worker.systemd")
    signals.beat_init.connect(_beat_ready, weak=False, dispatch_uid="celery_hybrid.worker.systemd")


class _Life:
    drain_seconds: float = 0
    patience: float = PATIENCE
    monitor: Monitor | None = None
    consumer: Any = None


def notify(**values: object) -> bool:
    """Send assignments to systemd (``READY=1``); return whether there is one to send to."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    # A name that begins with '@' is in Linux' abstract namespace.
    target = "\0" + address[1:] if address.startswith("@") else address
    text = "\n".join(f"{name}={value}" for name, value in values.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(text.encode(), target)
    return True


def watchdog_seconds() -> float:
    """Return how often systemd wants to hear from this process at least; 0 for never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6


class ChangeTimer:
    """Remembers when a value last changed.

    Args:
        clock: seconds from a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._value: Hashable = object()
        self._since = clock()

    def idle(self, value: Hashable) -> float:
        """Return for how many seconds *value* has been the same."""
        if value != self._value:
            self._value, self._since = value, self._clock()
        return self._clock() - self._since


class PresenceTimer:
    """Remembers since when each of a set of things is there.

    Args:
        clock: seconds from a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def of(self, names: Iterable[str]) -> dict[str, float]:
        """Return the age of each in seconds, and forget the others."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in names}
        return {name: now - since for name, since in self._since.items()}


def _copied(requests: Any) -> set[Any]:
    """Return a copy of a set that the main thread changes meanwhile."""
    while True:
        with contextlib.suppress(RuntimeError):
            return set(requests)


def _attempt(consumer: Any) -> int:
    # Celery 5.5 does not count; this package's consumer does.
    return getattr(consumer, "broker_connection_retry_attempt", 0)


class WorkerHealth:
    """What a worker's main process does, and whether it goes on.

    Args:
        consumer: the worker's consumer, which knows its pool and its application.
        patience: seconds without progress after which something is stuck.
        clock: seconds from a monotonic clock.
    """

    def __init__(self, consumer: Any, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._consumer = consumer
        self._patience = patience
        self._rounds = 0
        self._loop = ChangeTimer(clock)
        self._relays = {what: ChangeTimer(clock) for what in (RESULTS, DEAD_LETTERS)}
        self._handed, self._active = PresenceTimer(clock), PresenceTimer(clock)

    def problem(self) -> str:
        """Return what is stuck, or nothing."""
        # Run by the loop when it comes round.
        self._consumer.call_soon(self._come_round)
        return self._loop_problem() or self._pool_problem() or self._relay_problem()

    def loop_age(self) -> float:
        """Return for how many seconds the loop has not come round, as far as it was asked; ask it to."""
        # Looked at before it is asked again: else a loop that comes round between the two would count twice now, and
        # not at all the next time.
        idle = self._loop_idle()
        self._consumer.call_soon(self._come_round)
        return idle

    def status(self) -> str:
        """Return a line for ``systemctl status``."""
        consumer = self._consumer
        running = len(worker_state.active_requests)
        # Celery 5.7 knows them.
        scheduled = len(getattr(worker_state, "scheduled_requests", ()))
        attempt = _attempt(consumer)
        consuming = f"the broker is away, attempt {attempt}" if attempt else "consuming"
        words = [consuming, f"{counted(running, 'tasks')} running"]
        if scheduled:
            words.append(f"{scheduled} scheduled")
        for store in stores_of(consumer.app)[:1]:
            known = store.state()
            if "outbox" in known:
                words.append(f"{known['outbox'].get('count', '?')} results in the outbox")
            if known.get("dead_letters", {}).get("count"):
                words.append(f"{counted(known['dead_letters']['count'], 'dead letters')} in theirs")
            if known["failure"]:
                words.append("RabbitMQ is away")
        return "; ".join(words)

    def _come_round(self) -> None:
        self._rounds += 1

    def _loop_idle(self) -> float:
        consumer = self._consumer
        idle = self._loop.idle((self._rounds, consumer.restart_count, _attempt(consumer)))
        # The solo pool runs tasks in the loop.
        busy = worker_state.active_requests and type(consumer.pool).__module__ == "celery.concurrency.solo"
        return 0.0 if busy else idle

    def _loop_problem(self) -> str:
        idle = self._loop_idle()
        return "" if idle < self._patience else f"the consumer has not made progress for {idle:.0f} s"

    def _pool_problem(self) -> str:
        handed, active = [], []
        for request in list(worker_state.reserved_requests):
            if request in worker_state.active_requests:
                active.append(request)
            elif request._apply_result is not None:
                handed.append(request)
        waiting = max(self._handed.of(request.id for request in handed).values(), default=0.0)
        if waiting > self._patience and len(active) < self._consumer.pool.num_processes:
            return f"the pool has not started a task that it was given {waiting:.0f} s ago, although it has room"
        ages = self._active.of(request.id for request in active)
        for request in active:
            limit = self._time_limit(request)
            if limit and ages[request.id] > limit + self._patience:
                return f"the pool has not ended the task {request.id}, whose time limit is {limit:.0f} s"
        return ""

    def _relay_problem(self) -> str:
        for store in stores_of(self._consumer.app)[:1]:
            for delivery in store.deliveries:
                relay, progress = delivery.relay, self._relays[delivery.what]
                if relay is not None and relay.steps and progress.idle(relay.steps) > self._patience:
                    return f"the relay of the outbox of {delivery.what} is stuck"
        return ""

    def _time_limit(self, request: Any) -> float:
        limits = (request.time_limits[0], request.task.time_limit, self._consumer.app.conf.task_time_limit)
        return float(next((limit for limit in limits if limit), 0))


class BeatHealth:
    """What beat does, and whether it goes on.

    Args:
        service: Celery's beat.
        patience: seconds after the longest pause between two looks at the schedule.
        clock: seconds from a monotonic clock.
    """

    def __init__(self, service: Any, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = service.scheduler
        self._patience = patience
        self._ticks = 0
        self._periodic: int | None = None
        self._progress = ChangeTimer(clock)
        tick = self._scheduler.tick

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._ticks += 1
            pause = tick(*args, **kwargs)
            # Not its 'schedule': that reads and writes a database in other schedulers, and the monitor is a thread.
            heap = getattr(self._scheduler, "_heap", None)
            self._periodic = None if heap is None else len(heap)
            return pause

        self._scheduler.tick = counted

    def problem(self) -> str:
        """Return what is stuck, or nothing."""
        if not self._ticks:
            # RedBeat's standby waits for its lock before it looks for the first time, for as long as another one runs.
            return ""
        idle = self._progress.idle(self._ticks)
        longest = self._scheduler.max_interval + self._patience
        return f"beat has not checked its schedule for {idle:.0f} s" if idle > longest else ""

    def status(self) -> str:
        """Return a line for ``systemctl status``."""
        if not self._ticks:
            return "waits for its turn"
        # RedBeat keeps no list of its own.
        return "sends periodic tasks" if self._periodic is None else counted(self._periodic, "periodic tasks")


class Monitor:
    """A thread that feeds the watchdog while all is well.

    Args:
        health: what is asked.
        watchdog: seconds after which systemd ends a process that it has not heard from; 0 for never.
    """

    def __init__(self, health: WorkerHealth | BeatHealth, watchdog: float) -> None:
        self._health = health
        self._pause = min(watchdog / 4 or _LONGEST_PAUSE, _LONGEST_PAUSE)
        self._stopping = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="celery-hybrid systemd", daemon=True)

    def start(self) -> None:
        """Say that this process is ready, and go on saying that it lives."""
        notify(READY=1, STATUS=self._health.status())
        self._thread.start()

    def stop(self) -> None:
        """Say nothing more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._pause):
            try:
                self._look()
            except Exception:
                # What was asked is Celery's inside: a worker must not die because it has changed.
                logger.exception("Cannot determine the health of this process; reporting it as healthy.")
                notify(WATCHDOG=1)

    def _look(self) -> None:
        problem = self._health.problem()
        if self._stopping.is_set():
            return
        if not problem:
            self._said = ""
            notify(WATCHDOG=1, STATUS=self._health.status())
        elif problem != self._said:
            if not self._said:
                logger.critical("Stuck: %s. Unless it recovers, systemd's watchdog will kill this process.", problem)
            self._said = problem
            notify(STATUS=f"stuck: {problem}")


def _begin(health: WorkerHealth | BeatHealth) -> None:
    if os.environ.get("NOTIFY_SOCKET") and _Life.monitor is None:
        watchdog = watchdog_seconds()
        if watchdog:
            # The watchdog's SIGABRT then leaves the stacks of all threads in the journal. Celery replaces sys.stderr.
            faulthandler.enable(2)
        _Life.monitor = Monitor(health, watchdog)
        _Life.monitor.start()


def _worker_ready(sender: Any, **_: Any) -> None:
    _Life.consumer = sender
    _begin(WorkerHealth(sender, _Life.patience))


def _beat_ready(sender: Any, **_: Any) -> None:
    _begin(BeatHealth(sender, _Life.patience))


def _worker_stops(how: str, **_: Any) -> None:
    notify(STOPPING=1, STATUS="finishing running tasks" if how == "Warm" else "requeueing running tasks")
    if _Life.monitor is not None:
        _Life.monitor.stop()
    if how == "Warm" and _Life.drain_seconds > 0:
        # Celery's own soft shutdown sleeps for the whole time, also when the last task has ended, and does not
        # acknowledge meanwhile.
        _after(_Life.drain_seconds, os.kill, os.getpid(), signal.SIGQUIT)
        _after(_Life.drain_seconds + _POOL_SECONDS, _put_back)


def _after(seconds: float, function: Callable[..., Any], *args: Any) -> None:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()


def _put_back() -> None:
    """Put back what this worker holds, and end: a child hangs, and the worker waits for it.

    Else systemd would kill the worker in the end, and its tasks would be out of reach until the visibility timeout.
    """
    logger.critical("Pool did not stop; requeueing this worker's tasks and exiting.")
    try:
        _Life.consumer.task_consumer.channel.qos.restore_unacked_once()
    except Exception:
        logger.exception("Could not requeue some tasks; they come back after the visibility timeout.")
    # systemd kills the children that are left (KillMode=mixed).
    os._exit(1)

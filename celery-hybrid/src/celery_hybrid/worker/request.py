"""Requests: what a worker does when a task has ended badly.

Celery acknowledges a task that failed, and deletes its message. Here it is dead-lettered before; and a task whose
process died, ran out of memory or hit the hard time limit is sent again, a limited number of times.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals, states
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerShutdown,
    WorkerTerminate,
)
from celery.worker import request as base
from celery.worker import state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_hybrid.broker.chord_counter import COMPLETE, COUNTED, DONE, UNCOUNTED
from celery_hybrid.dead_letters.keeping import DeadLetters
from celery_hybrid.dead_letters.letter import ETA, FAILED, LOST, LOST_HEADER, REJECTED, REVOKED, TIME_LIMIT

logger = logging.getLogger(__name__)


class WorkerConsumer(Protocol):
    """What a request needs of the worker's consumer, :class:`celery_hybrid.worker.consumer.Consumer`."""

    connection_errors: tuple[type[BaseException], ...]
    dead_letters: DeadLetters

    def may_begin(self, message: Any) -> bool:
        """Return whether the claim on a message still holds, so that its task may begin."""

    def is_lost(self, message: Any) -> bool:
        """Return whether the claim on a message is lost."""

    def settle(self, message: Any, requeue: bool | None = None) -> None:
        """Acknowledge or reject a message; when Redis is away, as soon as it is back."""

    def leave(self, message: Any) -> None:
        """Leave a message in Redis, for another worker."""

    def send_again(self, message: Any, headers: dict[str, Any]) -> None:
        """Send a message again, with other headers, and acknowledge this one."""

    def put_away(self, message: Any, reason: str, exc: BaseException | None = None, traceback: str = "") -> bool:
        """Keep a message as a dead letter; return whether that worked."""


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback of the pool that ends its request also when it fails itself."""

    @functools.wraps(method)
    def callback(self: Request, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (WorkerShutdown, WorkerTerminate):
            raise
        except BaseException as failure:
            self.give_up(failure)
            if isinstance(failure, self._consumer.connection_errors):
                # The worker connects again.
                raise
            return None

    return callback


def _guarded_success(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def on_success(self: Request, result: Any, **kwargs: Any) -> Any:
        if isinstance(result, ExceptionInfo):
            # What the pools threads, gevent and solo report of a task that raised SystemExit and the like.
            return self.on_failure(result)
        self.succeeded = not result[0]
        return method(self, result, **kwargs)

    return _guarded(on_success)


def _guarded_begin(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what sends a task to the pool, if its message is still ours."""

    @functools.wraps(method)
    def execute_using_pool(self: Request, pool: Any, **kwargs: Any) -> Any:
        if not self._consumer.may_begin(self._message):
            base.task_ready(self)
            # Celery's word for a task that does not take up its place in the pool.
            raise TaskRevokedError(self.id)
        try:
            return method(self, pool, **kwargs)
        except (TaskRevokedError, WorkerShutdown, WorkerTerminate):
            raise
        except Exception as failure:
            self.give_up(failure)
            raise TaskRevokedError(self.id) from failure

    return execute_using_pool


#: Celery's strategy puts some of these methods into a class of its own for each task, so that Request cannot override
#: them.
_GUARDS = {
    "execute_using_pool": _guarded_begin,
    "on_success": _guarded_success,
    "on_failure": _guarded,
    "on_timeout": _guarded,
}


class Request(base.Request):  # type: ignore[misc]
    """Celery's request, which lets nothing go that is not kept elsewhere."""

    #: Of the worker; :meth:`celery_hybrid.worker.consumer.Consumer.update_strategies` makes a class for each.
    consumer: ClassVar[WorkerConsumer | None] = None
    acknowledged: bool = False
    #: Kept as a dead letter, sent again, or left in Redis: there is nothing more to decide.
    _decided = False
    _again = False
    _kept = False
    #: Its task has ended, and not with an error.
    succeeded = False
    #: A task of a chord that was lost before its end was counted: it has not done all that it has to.
    _uncounted = False
    #: Its ETA has come, or it waits for none any more.
    due = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        message.request = weakref.ref(self)
        run = getattr(message, "run", None)
        if run is not None:
            # The number of this run, of this package's transport: greater than those of all runs before.
            self._delivery_info["run"] = run
        info = self._delivery_info
        if info.get("redelivered") and self._app.conf.worker_deduplicate_successful_tasks and not self._is_counted():
            # A task whose success is stored is skipped, and would not be counted for its chord either.
            info["redelivered"] = not self._uncounted

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Guard the methods that Celery's strategy puts into a class of its own for each task."""
        super().__init_subclass__(**kwargs)
        for name in _GUARDS.keys() & vars(cls).keys():
            setattr(cls, name, _GUARDS[name](vars(cls)[name]))

    def acknowledge(self) -> None:
        """Acknowledge the task; when Redis is away, as soon as it is back."""
        if not self.acknowledged:
            self.acknowledged = True
            self._consumer.settle(self._message)

    def reject(self, requeue: bool = False) -> None:
        """Requeue the message, or reject it for good: then it is dead-lettered first."""
        if self.acknowledged:
            return
        if self._decided:
            # Its letter is kept: Celery's wish to have it again (acks_on_timeout = False) has been bounded.
            requeue = False
        elif not requeue and not self._put_away(REJECTED if self._apply_result else ETA):
            return
        self.acknowledged = True
        self._consumer.settle(self._message, requeue)
        self.send_event("task-rejected", requeue=requeue)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The task begins, also when that cannot be noted."""
        try:
            super().on_accepted(pid, time_accepted)
        except Exception as failure:
            logger.exception("The start of task %s[%s] could not be recorded", self.name, self.id)
            if isinstance(failure, self._consumer.connection_errors):
                raise

    @_guarded
    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The task failed, or its process did."""
        exc = _inner(exc_info.exception)
        if isinstance(exc, (SystemExit, KeyboardInterrupt, MemoryError)) and not self._stopped():
            # Celery exits on the last one.
            exc_info, exc = _lost(exc)
            return_ok = False
        if self._had_ended(exc):
            return None
        reason = self._reason(exc)
        if reason and not self._decided:
            if reason in (LOST, TIME_LIMIT) and self._send_again(exc, exc_info):
                return None
            if not self._put_away(reason, exc, str(exc_info.traceback)):
                return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    @_guarded
    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The task ran into a time limit. With prefork the hard one has come as a failure before."""
        if not soft and not self._decided and not self._stopped():
            exc = TimeLimitExceeded(timeout)
            if self._had_ended(exc):
                return
            if self._send_again(exc, None) or not self._put_away(TIME_LIMIT, exc):
                return
        if self._again:
            logger.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
            return
        super().on_timeout(soft, timeout)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        consumer = self._consumer
        if consumer.dead_letters.policy.revoked and not self._decided and not self.acknowledged:
            self._put_away(REVOKED, Terminated(reason))
        super()._announce_revoked(reason, terminated, signum, expired)

    def _had_ended(self, exc: BaseException) -> bool:
        """Let go of a task that was lost, or stopped, while it was sending the body of its chord."""
        lost = isinstance(exc, (WorkerLostError, TimeLimitExceeded)) and not self._decided and not self._stopped()
        if not lost or not self._is_counted():
            return False
        logger.warning("Task %s[%s] had ended, and was counted for its chord, before: %r", self.name, self.id, exc)
        base.task_ready(self)
        if self.task.acks_late:
            self.acknowledge()
        self.send_event("task-succeeded", result=None, runtime=None)
        return True

    def _is_counted(self) -> bool:
        """Return whether this is a task of a chord and its end is counted; let the body be sent if it was the last."""
        context, chords = self._context, getattr(self.task.backend, "chords", None)
        if chords is None or not context.chord or not context.group:
            return False
        try:
            state, status = chords.counter.state(context.group, self.id)
            if state == COMPLETE:
                chords.leave(context.group, origin={"delivery_info": context.delivery_info})
        except Exception as failure:
            logger.warning("Redis does not answer whether task %s[%s] is counted: %r", self.name, self.id, failure)
            return False
        self._uncounted = state == UNCOUNTED
        # One that failed is not a dead letter yet.
        return state in (COUNTED, COMPLETE, DONE) and status not in states.PROPAGATE_STATES

    def _success_was_stored(self) -> Any:
        # Celery 5.7 asks it about a task that was lost, and acknowledges it.
        stored = getattr(super(), "_success_was_stored", None)
        return stored() if stored is not None and not self._uncounted else False

    def _retry_worker_lost(self, *_: Any) -> bool:
        # Celery 5.7 with task_retry_on_worker_lost: has been done already, without an end of its own.
        return False

    @property
    def _consumer(self) -> WorkerConsumer:
        assert self.consumer is not None  # noqa: S101 - requests are only made of the consumer's own classes
        return self.consumer

    def give_up(self, failure: BaseException) -> None:
        """End the request after an error in the worker itself, so that it does not occupy the worker.

        A task that has not succeeded is kept as a dead letter; if that is not possible, its message stays in Redis.
        """
        logger.error("The end of task %s[%s] could not be handled: %r", self.name, self.id, failure, exc_info=failure)
        base.task_ready(self)
        if self.acknowledged:
            return
        try:
            done = self.succeeded or self._kept or self._consumer.put_away(self._message, FAILED, failure)
        except Exception:
            logger.exception("Task %s[%s] could not be kept as a dead letter", self.name, self.id)
            done = False
        if done:
            self.acknowledge()
        else:
            self._leave()

    def _stopped(self) -> bool:
        """Return whether the task was ended on purpose: it goes on elsewhere, or shall not."""
        return bool(self._already_cancelled or self._already_revoked or state.should_terminate)

    def _reason(self, exc: BaseException) -> str | None:
        """Return why a task is dead-lettered; None when that is Celery's own business."""
        if self._stopped() or isinstance(exc, (Terminated, Ignore, Retry, SystemExit, KeyboardInterrupt)):
            return None
        if isinstance(exc, Reject):
            # Celery's word for a retry() that could not be sent: the task shall run again, it was not rejected.
            # kombu hands some errors of a full or failing Redis on as they are.
            unsent = isinstance(exc.reason, (OperationalError, RedisError))
            return None if exc.requeue else LOST if unsent else REJECTED
        if isinstance(exc, WorkerLostError):
            # Celery 5.7 looks whether the task had been done before; it will look once more, and acknowledge.
            return None if self._success_was_stored() else LOST
        if isinstance(exc, TimeLimitExceeded):
            return TIME_LIMIT
        policy = self._consumer.dead_letters.policy
        expected = isinstance(exc, tuple(self.task.throws or ())) or policy.expects(exc)
        return FAILED if policy.failed and not expected else None

    def _put_away(self, reason: str, exc: BaseException | None = None, traceback: str = "") -> bool:
        """Keep the task as a dead letter; if that is not possible, leave it in Redis and return False."""
        self._decided = True
        if self._consumer.put_away(self._message, reason, exc, traceback):
            self._kept = True
            return True
        self._leave()
        return False

    def _leave(self) -> None:
        base.task_ready(self)
        if not self.acknowledged:
            self.acknowledged = True
            self._consumer.leave(self._message)

    def _send_again(self, exc: BaseException, exc_info: Any) -> bool:
        """Send the very message again after a while, unless it was often enough."""
        consumer = self._consumer
        headers = dict(self._message.headers)
        lost = headers.get(LOST_HEADER)
        lost = lost if isinstance(lost, int) else 0
        policy = consumer.dead_letters.policy
        if self.acknowledged or not self.task.acks_late or lost >= policy.lost_retries:
            return False
        if consumer.is_lost(self._message):
            # It is up to the worker that has the message now.
            self._decided = self._again = True
            self._leave()
            return True
        self._decided = self._again = True
        eta = datetime.now(UTC) + timedelta(seconds=policy.lost_retry_delay * 2**lost)
        try:
            consumer.send_again(self._message, {**headers, LOST_HEADER: lost + 1, "eta": eta.isoformat()})
        except Exception as failure:
            logger.warning("Task %s[%s] did not end; requeueing it: %r", self.name, self.id, failure)
            if isinstance(failure, consumer.connection_errors):
                base.task_ready(self)
                self.acknowledged = True
                consumer.settle(self._message, True)  # as soon as Redis is back
            else:
                self._leave()
            return True
        logger.warning(
            "Task %s[%s] did not end (%s); it runs again at %s, retry %d of %d.",
            *(self.name, self.id, exc, eta.isoformat(timespec="seconds"), lost + 1, policy.lost_retries),
        )
        base.task_ready(self)
        self.acknowledge()
        traceback = getattr(exc_info, "traceback", None)
        if self.store_errors:
            self.task.backend.store_result(self.id, exc, states.RETRY, traceback=traceback, request=self._context)
        self.send_event("task-retried", exception=repr(exc), traceback=str(traceback))
        signals.task_retry.send(self.task, request=self._context, reason=Retry(exc=exc, when=eta), einfo=exc_info)
        return True


def _inner(exc: Any) -> BaseException:
    # billiard wraps what comes from a child, for the sake of its traceback.
    inner: BaseException = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
    return inner


def _lost(exc: BaseException) -> tuple[Any, BaseException]:
    try:
        raise WorkerLostError(f"The process of the task ended: {type(exc).__name__}: {exc}")
    except WorkerLostError as lost:
        return ExceptionInfo(), lost

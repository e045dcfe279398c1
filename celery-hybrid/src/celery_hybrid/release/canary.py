"""Let given nodes, and no others, each run a task: through Redis, the node's pool, and RabbitMQ.

The ``worker`` role pipes this program, with a call of :func:`main` after it, to the Python of the workers' virtual
environment, as their user and with their environment. A node is asked to consume a queue of its own for
as long as it takes. The last line of the output is ``{"told": [...], "problems": [...]}``, a sentence for each node.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import time
from typing import Any

# Every worker has it, without the application's help; given a nonce it returns it.
TASK = "celery.accumulate"
ANSWER_SECONDS = 5.0


class NodeCanary:
    """A task for one node.

    Args:
        app: the application.
        node: the node's name.
        task: name of a task of the application that needs no arguments; empty takes one that returns a nonce.
    """

    def __init__(self, app: Any, node: str, task: str = "") -> None:
        self._app, self._node, self._task = app, node, task
        self._queue = f"celery.canary.{node}"
        self._nonce = secrets.token_hex(16)
        self._result: Any = None

    def send(self, deadline: float) -> None:
        """Let the node consume a queue of its own, and put a task there.

        Raises:
            TimeoutError: the node does not answer.
        """
        from kombu import Exchange, Queue

        while not self._ask("add_consumer", exchange=self._queue, routing_key=self._queue):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._node} does not answer")
        self._result = self._app.send_task(
            self._task or TASK,
            args=[] if self._task else [self._nonce],
            kwargs={} if self._task else {"index": 0},
            # A queue without a named exchange: nothing is declared, no routing is kept in Redis.
            queue=Queue(self._queue, Exchange(""), routing_key=self._queue),
            priority=0,
            expires=max(1.0, deadline - time.monotonic()) + 30,
            ignore_result=False,
        )

    def wait(self, deadline: float) -> str:
        """Return what came of it.

        Raises:
            TimeoutError: nothing, in time.
            RuntimeError: something else than what should.
        """
        from celery.exceptions import TimeoutError as CeleryTimeoutError

        begun = time.monotonic()
        while True:
            try:
                value = self._result.get(timeout=min(2.0, max(0.1, deadline - time.monotonic())), propagate=False)
                break
            except CeleryTimeoutError:
                # A backlog of its other queues comes first, and is as good a proof.
                ended = self._ended()
                if ended:
                    return f"{self._node} has run {ended} tasks from its queues"
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{self._node} has run no task, neither the canary nor one from its queues"
                    ) from None
        if self._result.state != "SUCCESS" or (not self._task and value != self._nonce):
            raise RuntimeError(
                f"{self._node}: the canary {self._task or TASK} ended with {self._result.state}: {value!r}"
            )
        worker = self._result.worker
        if worker != self._node:
            raise RuntimeError(f"the canary for {self._node} was run by {worker}")
        with contextlib.suppress(Exception):
            self._result.forget()
        return f"{self._node} has run the canary in {time.monotonic() - begun:.1f} s"

    def clean(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(Exception):
            self._ask("cancel_consumer")
        with contextlib.suppress(Exception), self._app.connection_for_write() as connection:
            channel = connection.default_channel
            lists = [channel._q_for_pri(self._queue, priority) for priority in channel.priority_steps]
            channel.client.delete(*lists, channel.keyprefix_queue % self._queue)

    def _ask(self, command: str, **arguments: Any) -> bool:
        ask = getattr(self._app.control, command)
        replies = ask(self._queue, destination=[self._node], reply=True, timeout=ANSWER_SECONDS, **arguments)
        return any("ok" in reply.get(self._node, {}) for reply in replies or [])

    def _ended(self) -> int:
        inspect = self._app.control.inspect(destination=[self._node], timeout=ANSWER_SECONDS)
        # In this order: a task that ends in between is not counted.
        total = sum(((inspect.stats() or {}).get(self._node) or {}).get("total", {}).values())
        active = (inspect.active() or {}).get(self._node)
        return 0 if active is None else max(0, total - len(active))


def run(app: Any, nodes: list[str], seconds: float, task: str = "") -> tuple[list[str], list[str]]:
    """Send a canary to each node; return what they did, and what they did not."""
    told, problems = [], []
    canaries = [NodeCanary(app, node, task) for node in nodes]
    deadline = time.monotonic() + seconds
    try:
        for canary in canaries:
            canary.send(deadline)
        for canary in canaries:
            told.append(canary.wait(deadline))  # noqa: PERF401 - what was told before an error is kept
    except Exception as exc:
        problems.append(f"{exc}" if isinstance(exc, (TimeoutError, RuntimeError)) else f"{type(exc).__name__}: {exc}")
    finally:
        for canary in canaries:
            canary.clean()
    return told, problems


def main(encoded: str) -> None:
    """Run the canaries that are described by base64 of JSON, and print what came out."""
    from celery.app.utils import find_app

    request = json.loads(base64.b64decode(encoded))
    output = os.dup(1)
    # Whatever the application prints must not be taken for the answer.
    os.dup2(2, 1)
    app = find_app(request["app"])
    told, problems = run(app, request["nodes"], request["seconds"], request["task"])
    os.write(output, (json.dumps({"told": told, "problems": problems}) + "\n").encode())
    # An application may have started threads.
    os._exit(0)

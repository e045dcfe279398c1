"""kombu's Redis transport with an atomic take.

kombu takes a message with BRPOP and writes it to ``unacked`` in a second step. Between the two the message is nowhere,
and it is lost when the worker is killed, its host loses power, or the connection is half open. Here one script does
both (:mod:`celery_hybrid.broker.transport_scripts`), so that **a message is in its queue or in unacked at every
instant**.

A script cannot wait. Redis tells when to look: with ``CLIENT TRACKING`` the server remembers which keys a connection
has read and pushes one message over the same connection (RESP3) when one of them changes
(https://redis.io/docs/latest/develop/reference/client-side-caching/). So the lists are read, and found empty, by a
command of its own before waiting. It needs no setting of the server and works with producers that only LPUSH.

If all idle workers were told of each message, a message would cost as many takes as there are workers. So one of those
that read the same queues has the *watch*, and the others wait for it with BRPOP, which costs nothing and wakes one of
them in turn. The script that takes a message hands the watch over in the same step. No message is in it, so a watcher
that dies or is paused delays one message by a look of the others, who then take the watch from it, and loses none.

Everything else is kombu's: keys, formats, priorities, fanout, remote control, so that producers and consumers with
stock kombu work on the same queues at the same time. Method names with ``brpop`` are kombu's hooks.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any

import kombu
import kombu.transport
import redis
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.eventio import READ, poll
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle, round_robin_cycle, sorted_cycle
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ResponseError

from celery_hybrid.broker import claims, separators
from celery_hybrid.broker.claims import INCARNATION, Suspects
from celery_hybrid.broker.transport_scripts import MOVE, OVERDUE, RENEW, TAKE

logger = logging.getLogger(__name__)

Undecodable = Callable[[bytes, str, str], bool]
"""Takes over the text of an element that is not a message, its queue and the reason; returns True when it is safe."""

# OPTIN: Redis 7.0 would remember all keys of a script, and each take or acknowledgement of anybody would be news.
# NOLOOP: what a connection changes itself is not reported to it.
_TRACK = ("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
_TRACK_NEXT = ("CLIENT", "CACHING", "YES")
_TAKE_SHA = hashlib.sha1(TAKE.encode(), usedforsecurity=False).hexdigest()
_MOST_AT_ONCE = 32
# Of one call of a script.
_CLAIMS_AT_ONCE = 1000
_MOVED_AT_ONCE = 50
# Of one look for what is overdue, and seconds in which it puts back before the event loop has its turn again.
_MOST_OVERDUE = 10_000
_RESTORE_SECONDS = 0.25
# Between two looks that must see a claim overdue: longer than a worker needs to connect again and to renew.
_GRACE_SECONDS = 15.0
# A connection that is told of changes looks all the same, and so finds out that it is half open.
_LOOK_SECONDS = 5.0
# How often those that wait for the watch check whether its holder takes the messages.
_WAIT_SECONDS = 2.0
_LEFT_SECONDS = 0.2
# The watch of a worker that has died or was paused is free after so many looks that it has missed.
_MISSED_LOOKS = 2.5
# In vain: so often in a row it is asked for messages without a pause. Clients of other databases wake a watcher, too.
_VAIN = 3
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 60.0


def install() -> None:
    """Use this transport for the URLs ``redis://``, ``rediss://`` and ``sentinel://`` in this process.

    Better than Celery's ``broker_transport``: kombu sets up TLS for ``rediss://`` by the scheme, and forgets
    ``broker_transport`` when it switches to the next of several URLs.
    """
    for scheme, name in (("redis", "Transport"), ("rediss", "Transport"), ("sentinel", "SentinelTransport")):
        kombu.transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{name}"
        kombu.transport._transport_cache.pop(scheme, None)


def _readable(sock: Any) -> bool:
    """Return whether there is something to read, and leave it where the event loop sees it."""
    poller = poll()
    try:
        poller.register(sock, READ)
        return bool(poller.poll(0))
    finally:
        poller.close()


def _watch_seconds() -> int:
    return round(_LOOK_SECONDS * _MISSED_LOOKS)


def _remedy(error: ResponseError) -> str:
    """Return what to do about a Redis that refuses a take."""
    text = str(error)
    if "WRONGTYPE" in text:
        return "Rename or delete that key, which is not Celery's."
    if isinstance(error, NoPermissionError) or "can't run this command" in text or "ACL failure" in text:
        return "Give the worker's Redis user the rights that the 'redis' role declares."
    if isinstance(error, OutOfMemoryError):
        return "Redis has reached maxmemory."
    return "Retrying every few seconds."


class QoS(stock.QoS):
    """Messages that were taken and not yet acknowledged."""

    #: When to look for what is overdue, by the monotonic clock.
    next_look = float("-inf")

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a message; the take has written it to ``unacked`` already."""
        try:
            self.channel._taken.remove(delivery_tag)
        except KeyError:
            super().append(message, delivery_tag)
        else:
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message.

        Not in a transaction: an index entry without its message, which is all that can be left, does no harm, and
        goes when it is overdue.
        """
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            pipe.hdel(self.unacked_key, delivery_tag).zrem(self.unacked_index_key, delivery_tag).execute()
        virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> bool:
        """Put a message back to its queue, to be taken next, or last with *leftmost*.

        Returns:
            whether it is back; its claim was lost otherwise, or Redis has refused it.
        """
        with self.channel.conn_or_acquire(client) as client:
            return bool(self.channel._put_back(client, [(bytes_to_str(tag), "")], leftmost=leftmost))

    def restore_unacked(self, client: Any = None) -> None:
        """Put everything back that this channel has, the oldest to be taken next."""
        with self.channel.conn_or_acquire(client) as client:
            for some in _parts([(name, "") for name in reversed(self._delivered)], _MOVED_AT_ONCE):
                self.channel._put_back(client, some)
        self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:  # noqa: ARG002
        """Put back what was not acknowledged within the visibility timeout, every ``unacked_restore_interval``.

        Only what was seen overdue before, with the same score and a grace ago, and never what this connection has.
        There is no mutex: with kombu's, no worker restores for five minutes when its holder dies. Each message is
        moved in one step, so several workers that do this at the same time cannot restore one twice.
        """
        channel = self.channel
        if monotonic() < self.next_look:
            return
        self.next_look = monotonic() + channel.unacked_restore_interval
        if num == 0:
            return
        suspects: Suspects = channel.connection.cycle.suspects
        grace = min(_GRACE_SECONDS, self.visibility_timeout)
        with channel.conn_or_acquire() as client:
            channel._return_unanswered(client)
            due = suspects.due(channel._find_overdue(client), grace)[:num]
            end, restored = monotonic() + _RESTORE_SECONDS, 0
            for some in _parts(due, _MOVED_AT_ONCE):
                if monotonic() > end:
                    self.next_look = end
                    break
                restored += channel._put_back(client, some)
        if len(suspects) > len(due):
            self.next_look = min(self.next_look, monotonic() + grace)
        if restored:
            logger.warning(
                "Restored %d messages that were not acknowledged within %s s", restored, self.visibility_timeout
            )


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


class Poller(stock.MultiChannelPoller):
    """Waits for the connections of all channels."""

    hub: Any = None
    _poll_timer: Any = None

    def __init__(self) -> None:
        super().__init__()
        #: What no channel of this connection has acknowledged in time, as far as it was seen.
        self.suspects = Suspects()

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802 - kombu's name
        channel._keep_looking()
        super()._register_BRPOP(channel)

    def _update_brpop_polling(self) -> None:
        """Pause nothing: what arrives is always read immediately, so a socket cannot spin the event loop."""

    def maybe_check_brpop_health(self) -> None:
        """Do nothing: channels look after their connections themselves."""

    def on_readable(self, fileno: int) -> None:
        """Read what has arrived."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP":
            channel.handlers[kind]()
        elif channel is not None:
            super().on_readable(fileno)

    def on_poll_init(self, poller: Any) -> None:
        """Begin; what is overdue is put back later, too, if Redis refuses it now."""
        with suppress(ResponseError):
            super().on_poll_init(poller)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for one event, without an event loop; wake up for what channels have to do meanwhile."""
        longest = min((channel._pause for channel in self._channels), default=_LOOK_SECONDS)
        restorer = next((channel for channel in self._channels if channel.active_queues), None)
        if restorer is not None and restorer.ack_emulation:
            longest = max(_POLL_SECONDS, min(longest, restorer.qos.next_look - monotonic()))
        return super().get(callback, longest if timeout is None else min(timeout, longest))

    def maybe_restore_messages(self) -> None:
        """Let one channel do what is due from time to time."""
        for channel in self._channels:
            if channel.active_queues:
                try:
                    channel.qos.restore_visible(num=channel.unacked_restore_limit)
                    channel._check()
                except (*channel.connection_errors, ResponseError):
                    # The connection that waits for messages sees it too, and reports it.
                    logger.debug("Could not restore unacknowledged messages; trying again", exc_info=True)
                return

    def forget(self, loop: Any, connection: Any) -> None:
        """Forget the sockets of a connection that was closed, as kombu 5.7 does.

        Earlier versions stop polling until the worker connects again; it never does when that connection was idle.
        """
        for key in list(self._chan_to_sock):
            channel, client, kind = key
            if client.connection is connection:
                del self._chan_to_sock[key]
                for fd in [fd for fd, it in self._fd_to_chan.items() if it == (channel, kind)]:
                    loop.remove(fd)
                    del self._fd_to_chan[fd]

    def poll_fast(self) -> None:
        """Let the event loop turn often, for a server that does not tell of changes."""
        if self.hub is not None and self._poll_timer is None:
            self._poll_timer = self.hub.call_repeatedly(_POLL_SECONDS, lambda: None)


class Channel(stock.Channel):
    """kombu's channel, with an atomic take."""

    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, "unacked_restore_interval", "undecodable_key")

    unacked_restore_interval = 5
    deadletter_queue = "celery.undeliverable"
    #: List of elements that were not messages, in three lines: the queue in JSON, the reason, the element as it was.
    undecodable_key = "celery.undecodable"
    #: Number of the last run. Each take of a message gets a greater one, whichever worker it is.
    run_key = "celery.run"

    # What was asked on the waiting connection and not answered: None, "take", "look" (are there messages, and tell when
    # that changes), "wait" (for the watch) or "check" (whether there are messages that no worker watches for).
    _asked: str | None = None
    # What to ask next.
    _next = "take"
    # This channel has the watch of the queues that it has asked for.
    _watching = False
    # Looks in a row that have found messages which another one that has the watch did not take.
    _left = 0
    _watcher = ""
    _vain = 0
    _asked_count = 0
    _rests = False
    _asked_at = 0.0
    _asked_queues: list[str]
    # The name of the take that was asked for, and when by the clock of leases.
    _asked_take = ""
    _asked_lease = 0.0
    _idle_since = 0.0
    _woken = False
    _batch = 1
    # The socket that is set up, and whether the server tells it of changes.
    _ready_sock: Any = None
    _told = False
    _by_hash = False
    _pause = _LOOK_SECONDS
    _checked = float("-inf")
    _refused = float("-inf")
    _warned = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._taken: set[str] = set()
        self._unacknowledged: set[str] = set()
        self._asked_queues = []
        super().__init__(*args, **kwargs)
        if not self.ack_emulation:
            self.QoS = virtual.QoS

    # -- asking ---------------------------------------------------------------------------------------------------

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        if asynchronous:
            # The server can speak first only in this version of the protocol; the default of redis-py 8.
            params.setdefault("protocol", 3)
            if redis.VERSION < (6,):
                # It would check the health of the connection, with a PING, before it logs in.
                params["health_check_interval"] = 0
        return params

    def _script_keys(self, first: str, *others: str) -> list[str]:
        """Return keys of a script; kombu's prefixing client prefixes the first one only."""
        return [first, *(self.global_keyprefix + key for key in others)]

    @functools.cached_property
    def _overdue(self) -> Any:
        return self._create_client().register_script(OVERDUE)

    @functools.cached_property
    def _move(self) -> Any:
        return self._create_client().register_script(MOVE)

    @functools.cached_property
    def _take(self) -> Any:
        return self._create_client().register_script(TAKE)

    @functools.cached_property
    def _renewal(self) -> Any:
        return self._create_client().register_script(RENEW)

    def _lists(self, queues: Iterable[str]) -> list[str]:
        queues = list(queues)
        return [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]

    def _take_arguments(self, queues: list[str], most: int) -> tuple[list[str], list[Any]]:
        keys = self._script_keys(
            *(self.unacked_key, self.unacked_index_key, self.undecodable_key, self.run_key),
            *(*self._watch(queues), *self._lists(queues)),
        )
        acknowledged = "".join("01"[self.ack_emulation and queue not in self._unacknowledged] for queue in queues)
        rotate = int(type(self._queue_cycle) is round_robin_cycle)
        # Only a connection that is told of changes can watch.
        watch = ("give" if self._watching else "oust" if self._left > 1 else "ask") if self._told else ""
        take = INCARNATION.next_take()
        return keys, [most, rotate, acknowledged, take, watch, self._watcher, _watch_seconds(), *map(dumps, queues)]

    def _watch(self, queues: Iterable[str]) -> tuple[str, str]:
        """Return the list where the watch of these queues is handed over, and the key of who has it."""
        digest = hashlib.sha1("\n".join(sorted(queues)).encode(), usedforsecurity=False).hexdigest()[:16]
        return f"celery.watch.{digest}", f"celery.watcher.{digest}"

    def _most(self) -> int:
        """Return how many messages to take: what the prefetch count allows, and slowly more while there is a backlog.

        So a few messages spread over the workers that wait, as they do with BRPOP, and many are taken in few calls.
        """
        qos = self.qos
        # worker_disable_prefetch replaces this method, and then counts differently.
        if "can_consume" in vars(qos):
            return 1
        if type(self._queue_cycle) not in (round_robin_cycle, priority_cycle, sorted_cycle):
            return 1
        return max(1, min(self._batch, _MOST_AT_ONCE, qos.can_consume_max_estimate() or 1))

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's signature
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        if connection._sock is None or self._ready_sock is not connection._sock:
            self._set_up(connection)
        self._asked_queues = list(queues)
        {"take": self._send_take, "look": self._send_look, "wait": self._send_wait, "check": self._send_check}[
            self._next if self._told else "take"
        ](connection)

    def _send_take(self, connection: Any) -> None:
        self._next = "take"
        self._asked_most = self._most()
        keys, args = self._take_arguments(self._asked_queues, self._asked_most)
        keys[0] = self.global_keyprefix + keys[0]
        self._asked_take, self._asked_lease = args[3], claims.now()
        command = ("EVALSHA", _TAKE_SHA) if self._by_hash else ("EVAL", TAKE)
        self._ask(connection, "take", (*command, len(keys), *keys, *args))
        self._by_hash = True

    def _send_look(self, connection: Any, what: str = "look") -> None:
        """Ask whether there are messages, and to be told when that changes; and say who watches."""
        _, watcher = self._asked_watch()
        alive = ("SET", watcher, self._watcher, "EX", _watch_seconds(), "GET")
        self._ask(connection, what, _TRACK_NEXT, ("EXISTS", *self._asked_lists()), alive)

    def _send_wait(self, connection: Any) -> None:
        """Wait for the watch."""
        watch, _ = self._asked_watch()
        # What has just arrived is taken meanwhile.
        self._ask(connection, "wait", ("BRPOP", watch, _LEFT_SECONDS if self._left else _WAIT_SECONDS))

    def _send_check(self, connection: Any) -> None:
        """Ask whether there are messages, and whether anybody watches."""
        # One command for both: a key counts as often as it is named.
        self._ask(connection, "check", ("EXISTS", *self._asked_lists() * 3, *self._asked_watch()))

    def _asked_lists(self) -> list[str]:
        return [self.global_keyprefix + key for key in self._lists(self._asked_queues)]

    def _asked_watch(self) -> list[str]:
        return [self.global_keyprefix + key for key in self._watch(self._asked_queues)]

    def _ask(self, connection: Any, what: str, *commands: Any) -> None:
        connection.send_packed_command(connection.pack_commands(commands))
        self._in_poll, self._asked_count = connection, len(commands)
        self._asked, self._asked_at = what, monotonic()

    def _hand_over(self) -> None:
        """Let another worker have the watch, because this one does not take messages now."""
        if self._watching:
            self._watching, self._next = False, "take"
            with suppress(*self.connection_errors, ResponseError), self.conn_or_acquire() as client:
                client.lpush(self._watch(self._asked_queues)[0], "1")

    def _set_up(self, connection: Any) -> None:
        """Prepare a new connection for waiting."""
        if INCARNATION.unanswered:
            self._return_what_was_asked()
        self._by_hash = self._told = False
        self._next = "take"
        self._watcher = self._watcher or INCARNATION.next_watcher()
        reason = "the connection does not use RESP3"
        if str(getattr(connection, "protocol", 2)) == "3":
            connection._parser.invalidation_push_handler_func = self._on_change
            try:
                for command in (_TRACK, _TRACK_NEXT):
                    connection.send_command(*command)
                    connection.read_response()
                self._told = True
            except ResponseError as error:
                reason = (
                    f"{error}; Redis 6 or newer and the rights to 'client|tracking' and 'client|caching' are needed"
                )
        self._ready_sock = connection._sock
        self._pause = _LOOK_SECONDS if self._told else _POLL_SECONDS
        if not self._told:
            if not self._warned:
                self._warned = True
                logger.warning("Redis cannot tell when messages arrive, so it is asked every 0.1 s: %s", reason)
            self.connection.cycle.poll_fast()

    def _return_what_was_asked(self) -> None:
        try:
            with self.conn_or_acquire() as client:
                self._return_unanswered(client)
        except ResponseError as error:
            logger.warning(
                "Messages that were taken while the connection broke come back after the visibility timeout: %s", error
            )

    def _on_change(self, _push: Any) -> None:
        self._woken = True

    def _keep_looking(self) -> None:
        """Look again when nothing was heard for a while, and give up a connection that does not answer."""
        connection = self._in_poll
        if not connection or connection._sock is None:
            return
        now = monotonic()
        if self._asked:
            patience = self.health_check_interval
            if patience and self._asked == "wait":
                patience += _WAIT_SECONDS
            if patience and now - self._asked_at > patience and not _readable(connection._sock):
                logger.warning("Redis has not answered for %.0f s; dropping the connection", now - self._asked_at)
                connection.disconnect()
        elif now - self._idle_since >= self._pause:
            if self._told and self._watching and not self._rests:
                self._send_look(connection, "again")
            else:
                self._rests, self._in_poll = False, None

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection or self._ready_sock is None:
            self._lose_answer()
        super()._on_connection_disconnect(connection)

    def _lose_answer(self) -> None:
        """Remember a take whose answer was lost: its messages go back with the next connection."""
        asked, self._asked = self._asked, None
        if self._watching:
            # Who connects again has it still.
            self._watching = False
            INCARNATION.watchers.append(self._watcher)
            self._watcher = ""
        if asked == "take":
            # Redis can get round to it after it has got the next connection.
            INCARNATION.unanswered[self._asked_take] = claims.now() + _GRACE_SECONDS

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()
        if set(self.active_queues) == set(self._asked_queues):
            return
        # It waits for other queues than these.
        self._hand_over()
        self._next = "take"
        if self._in_poll and self._asked == "wait":
            self._in_poll.disconnect()
        if not self._asked:
            self._in_poll = None

    # -- reading --------------------------------------------------------------------------------------------------

    def _brpop_read(self, **_options: Any) -> bool:
        """Read what Redis has said, and deliver the messages in it.

        Raises:
            Empty: there were none.
        """
        connection = self.client.connection
        asked, self._asked = self._asked, None
        waiting, self._in_poll = self._in_poll, None
        self._woken = False
        replies: list[Any] = []
        trouble = None
        try:
            if asked is None:
                connection.read_response(push_request=True)
            else:
                replies = self._read_all(connection, asked)
        except NoScriptError:
            self._by_hash = False
            self._send_take(connection)
            raise Empty from None
        except ResponseError as error:
            self._rest(connection, error)
            raise Empty from error
        except self.connection_errors as error:
            self._asked = asked
            self._lose_answer()
            connection.disconnect()
            if not waiting:
                # An idle server closed it; nothing was expected from it.
                raise Empty from error
            raise
        self._flush_reauth()
        try:
            # What stays in the parser's buffer is not seen by the event loop.
            while connection._sock is not None and connection.can_read(timeout=0):
                connection.read_response(push_request=True)
        except self.connection_errors as error:
            connection.disconnect()
            trouble = error
        found = self._understand(connection, asked, replies)
        if trouble:
            raise trouble
        if found:
            return True
        raise Empty

    def _read_all(self, connection: Any, asked: str) -> list[Any]:
        """Read the answers to all that was asked; raise the first error when all are read."""
        if asked == "wait":
            return [self._read_watch(connection)]
        replies, failure = [], None
        for _ in range(self._asked_count):
            try:
                replies.append(connection.read_response())
            except ResponseError as error:
                replies.append(None)
                # When Redis is full it cannot be written who watches, which can wait.
                if not (asked in ("look", "again") and isinstance(error, OutOfMemoryError)):
                    failure = failure or error
        if failure is not None:
            raise failure
        return replies

    def _read_watch(self, connection: Any) -> Any:
        """Read the answer to a wait, which does not come with the news of a list that was looked at before.

        Raises:
            Empty: it has not come.
        """
        while True:
            self._woken = False
            reply = connection.read_response(push_request=True)
            if not self._woken:
                return reply
            if not connection.can_read(timeout=0):
                self._asked, self._in_poll = "wait", connection
                raise Empty

    def _rest(self, connection: Any, error: ResponseError) -> None:
        """Ask again after a while."""
        if monotonic() - self._refused > _CHECK_SECONDS:
            self._refused = monotonic()
            logger.error("Redis refuses commands, so no messages are taken; retrying: %s. %s", error, _remedy(error))
        self._next, self._rests = "take", True
        self._in_poll, self._idle_since = connection, monotonic()

    def _understand(self, connection: Any, asked: str | None, replies: list[Any]) -> bool:
        """Do what follows from an answer, and return whether there were messages in it."""
        if asked == "take":
            return self._take_answered(connection, replies[0])
        if asked in ("look", "again"):
            _, messages, watcher = replies
            if asked == "again" and watcher and bytes_to_str(watcher) > self._watcher:
                # One is enough; both see the other.
                self._watching, self._next = False, "wait"
            elif messages:
                self._next = "take"
            elif not self._woken:
                self._in_poll, self._idle_since = connection, monotonic()
        elif asked == "wait":
            self._watching = replies[0] is not None
            self._next = "look" if self._watching else "check"
            self._left *= not self._watching
        elif asked == "check":
            messages, watched = divmod(replies[0], 3)
            self._left = self._left + 1 if messages and watched else 0
            self._next = "take" if self._left > 1 or not watched else "wait"
        else:
            self._vain += 1
            self._next = "take" if self._vain <= _VAIN else "look"
        if set(self.active_queues) != set(self._asked_queues):
            self._hand_over()
            self._next, self._in_poll = "take", None
        elif self._watching and not self.qos.can_consume():
            self._hand_over()
        return False

    def _take_answered(self, connection: Any, reply: list[Any]) -> bool:
        if len(reply) > 1:
            run, more, *taken = reply
            gave, self._watching = self._watching, False
            self._next, self._vain = ("wait" if gave and not more else "take"), 0
            self._batch = min(self._batch * 2, _MOST_AT_ONCE) if len(taken) == 3 * self._asked_most else 1
            self._deliver_taken(run, taken)
            return True
        if not self._told:
            self._in_poll, self._idle_since = connection, monotonic()
            return False
        self._watching, self._left = bool(reply), 0
        self._next = "look" if self._watching else "wait"
        return False

    def _flush_reauth(self) -> None:
        # Since kombu 5.7.
        flush = getattr(self, "_flush_brpop_reauth", None)
        if flush is not None:
            flush()

    def _poll_error(self, type: str, **options: Any) -> None:  # noqa: A002 - kombu's name
        if type == "BRPOP":
            self._brpop_read()
        else:
            super()._poll_error(type, **options)

    def _deliver_taken(self, run: int, taken: list[Any]) -> None:
        batch = deque(zip(itertools.count(run), taken[::3], taken[1::3], taken[2::3], strict=False))
        queues = self._asked_queues
        try:
            while batch:
                run, number, name, text = batch.popleft()
                queue = queues[number - 1]
                self._queue_cycle.rotate(queue)
                message = self._message(queue, bytes_to_str(name), text, queue not in self._unacknowledged)
                if message is None:
                    continue
                message.run, message.leased = run, self._asked_lease
                callback = self.connection._callbacks.get(queue)
                if callback is None:
                    logger.warning("Queue %s has no consumer any more; requeueing its message", queue)
                    self._give_back(message.delivery_tag, leftmost=True)
                else:
                    callback(message)
        finally:
            # The callback raised.
            for _, _, name, _ in batch:
                self._give_back(bytes_to_str(name))

    def _message(self, queue: str, name: str, text: bytes, acknowledged: bool) -> Any:
        """Return the message, or None when the element was none and is set aside."""
        reason = "is not a Celery message: it has no delivery tag"
        acknowledged = acknowledged and self.ack_emulation
        if name:
            try:
                # Strictly: kombu's bytes_to_str would replace what is not UTF-8.
                payload = loads(text.decode())
                payload["properties"]["delivery_tag"] = name
                message = self.Message(payload, channel=self)
                if not isinstance(message.delivery_info, dict) or not isinstance(message.headers, dict):
                    raise TypeError("has headers or delivery_info that are not mappings")
            except Exception as error:
                reason = f"cannot be decoded: {type(error).__name__}: {error}".replace("\n", " ")
                with self.conn_or_acquire() as client:
                    self._set_aside(client, queue, reason, text, name if acknowledged else "")
            else:
                if acknowledged:
                    self._taken.add(name)
                return message
        logger.error(
            "An element of queue %s %s. It is kept in the list %s: %.200r", queue, reason, self.undecodable_key, text
        )
        self._offer_undecodable()
        return None

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> Any:
        """Consume from *queue*."""
        (self._unacknowledged.add if no_ack else self._unacknowledged.discard)(queue)
        result = super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

        def deliver(message: Any) -> Any:
            if not isinstance(message, self.Message):
                # A broadcast, or a message that stock code hands over.
                try:
                    message = self.Message(message, channel=self)
                except Exception as error:
                    logger.error("Dropped a broadcast to %s that cannot be decoded: %r", queue, error)
                    return None
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return callback(message)

        self.connection._callbacks[queue] = deliver
        return result

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> Any:
        """Return one message of *queue*, or None."""
        with self.conn_or_acquire() as client:
            while True:
                keys, args = self._take_arguments([queue], 1)
                args[2], args[4] = "01"[self.ack_emulation and not no_ack], ""
                leased = claims.now()
                reply = self._take(keys=keys, args=args, client=client)
                self._renew_queue(client, queue)
                if not reply:
                    return None
                run, _, _, name, text = reply
                message = self._message(queue, bytes_to_str(name), text, not no_ack)
                if message is not None:
                    message.run, message.leased = run, leased
                    if not no_ack:
                        self.qos.append(message, message.delivery_tag)
                    return message

    def _size(self, queue: str) -> int:
        """Return how many messages wait; a key of the wrong type does not keep a worker from starting."""
        try:
            return int(super()._size(queue))
        except ResponseError as error:
            logger.error("Cannot read the size of queue %s: %s. %s", queue, error, _remedy(error))
            return 0

    def _renew_queue(self, client: Any, queue: str) -> None:
        # Queues that expire, since kombu 5.7.
        renew = getattr(self, "_maybe_update_queues_expire", None)
        if renew is not None:
            renew(client, queue)

    # -- claims ---------------------------------------------------------------------------------------------------

    def renew(self, names: Sequence[str]) -> list[str]:
        """Renew claims.

        Args:
            names: of the claims.

        Returns:
            The names of those that are lost: another worker may have their messages.
        """
        lost: list[str] = []
        keys = self._script_keys(self.unacked_key, self.unacked_index_key)
        with self.conn_or_acquire() as client:
            for some in _parts(list(names), _CLAIMS_AT_ONCE):
                lost += map(bytes_to_str, self._renewal(keys=keys, args=some, client=client))
        return lost

    def _find_overdue(self, client: Any) -> Iterator[tuple[str, str]]:
        """Return names and scores of claims that are overdue and that this connection does not hold."""
        held = {name for channel in self.connection.channels for name in list(channel.qos._delivered)}
        for first in range(0, _MOST_OVERDUE, _CLAIMS_AT_ONCE):
            args = [self.visibility_timeout, first, _CLAIMS_AT_ONCE]
            found = self._overdue(keys=[self.unacked_index_key], args=args, client=client)
            for name, score in zip(found[::2], found[1::2], strict=True):
                if bytes_to_str(name) not in held:
                    yield bytes_to_str(name), bytes_to_str(score)
            if len(found) < 2 * _CLAIMS_AT_ONCE:
                return

    def _return_unanswered(self, client: Any) -> None:
        """Put back what takes have claimed whose answers were lost with their connections."""
        for take, until in list(INCARNATION.unanswered.items()):
            if claims.now() > until:
                del INCARNATION.unanswered[take]
            cursor, names = "0", []
            while True:
                key = self.global_keyprefix + self.unacked_index_key
                cursor, found = client.execute_command("ZSCAN", key, cursor, "MATCH", f"*:{take}.*", "COUNT", 1000)
                names += [bytes_to_str(name) for name, _ in found]
                if not int(cursor):
                    break
            if names:
                moved = self._put_back(client, [(name, "") for name in names])
                logger.warning("Put back %d messages that were taken while the connection broke", moved)

    # -- putting back ---------------------------------------------------------------------------------------------

    def _give_back(self, name: str, leftmost: bool = False) -> None:
        self._taken.discard(name)
        if self.ack_emulation:
            try:
                self.qos.restore_by_tag(name, leftmost=leftmost)
            except (*self.connection_errors, ResponseError):
                logger.warning(
                    "Could not requeue message %s; it comes back after the visibility timeout", name, exc_info=True
                )

    def _put_back(self, client: Any, found: Iterable[tuple[str, Any]], leftmost: bool = False) -> int:
        """Move messages from ``unacked`` to where they belong, unless their claims are lost or were renewed.

        Args:
            client: of Redis.
            found: names of claims, and the scores that they must have; an empty one: whatever it is.
            leftmost: to be taken last instead of next.

        Returns:
            how many were moved.
        """
        found = list(found)
        with client.pipeline(transaction=False) as pipe:
            for name, _ in found:
                pipe.hget(self.unacked_key, name)
            entries = pipe.execute()
        return sum(
            self._move_claims(
                client,
                [
                    (name, score, *self._destination(name, entry))
                    for (name, score), entry in zip(found, entries, strict=True)
                ],
                "LPUSH" if leftmost else "RPUSH",
            )
        )

    def _destination(self, name: str, entry: bytes | None) -> tuple[str | bytes, list[str]]:
        """Return the text of a message that goes back, and its lists."""
        if not entry:
            return "", []
        try:
            payload, exchange, routing_key = loads(bytes_to_str(entry))
            for flagged in (payload["headers"], payload["properties"].get("delivery_info")):
                if isinstance(flagged, dict):
                    flagged["redelivered"] = True
            step = self._get_message_priority(payload, reverse=False)
            lists = [self._q_for_pri(queue, step) for queue in self._lookup(exchange, routing_key)]
            if lists:
                return dumps(payload), lists
        except Exception as error:
            # A KeyError counts as a lost connection with kombu 5.7.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
        logger.error("Message %s cannot be restored. It is kept in the list %s", name, self.undecodable_key)
        return self._undecodable("", "cannot be restored from unacked", entry), [self.undecodable_key]

    def _move_claims(self, client: Any, moves: list[tuple[str, Any, str | bytes, list[str]]], side: str) -> list[int]:
        lists = list(dict.fromkeys(key for *_, keys in moves for key in keys))
        args: list[Any] = [side]
        for name, score, text, keys in moves:
            args += [name, score, text, " ".join(str(lists.index(key) + 1) for key in keys)]
        keys = self._script_keys(self.unacked_key, self.unacked_index_key, *lists)
        moved = self._move(keys=keys, args=args, client=client)
        refused = [answer for answer in moved if not isinstance(answer, int)]
        if refused:
            logger.error(
                "%d messages cannot go back to their queues and are kept: %s", len(refused), refused[0].decode()
            )
        return [answer for answer in moved if isinstance(answer, int)]

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if self.ack_emulation:
            self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)
        else:
            super()._restore(message)

    # -- elements that are not messages -------------------------------------------------------------------------------

    def _undecodable(self, queue: str, reason: str, text: bytes) -> bytes:
        return f"{dumps(queue)}\n{reason}\n".encode() + text

    def _set_aside(self, client: Any, queue: str, reason: str, text: bytes, name: str) -> None:
        """Keep an element that is not a message; *name* is that of its claim, if it has one."""
        element = self._undecodable(queue, reason, text)
        if name:
            self._move_claims(client, [(name, "", element, [self.undecodable_key])], "LPUSH")
        else:
            client.lpush(self.undecodable_key, element)

    def _offer_undecodable(self) -> None:
        """Offer what was set aside to ``on_undecodable``, oldest first, until it does not take one."""
        hook = self.connection.on_undecodable
        if hook is None:
            return
        with self.conn_or_acquire() as client:
            while element := client.execute_command("LINDEX", self.global_keyprefix + self.undecodable_key, -1):
                queue, reason, text = element.split(b"\n", 2)
                try:
                    if not hook(text, loads(queue), reason.decode()):
                        return
                except Exception:
                    logger.exception("Could not dead-letter an element that is not a message; it stays in Redis")
                    return
                client.execute_command("LREM", self.global_keyprefix + self.undecodable_key, -1, element)

    # -- binding tables -------------------------------------------------------------------------------------------

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """Return the bindings of *exchange*; when Redis has lost them, those that this process has made."""
        return self._bindings(exchange) or self._bind_again(exchange, self.state.bindings)

    def _queue_bind(self, exchange: str, *binding: Any) -> None:
        try:
            super()._queue_bind(exchange, *binding)
        except ResponseError:
            # A Redis that is full refuses even what would change nothing.
            if tuple(part or "" for part in binding) not in self._bindings(exchange):
                raise

    def _bindings(self, exchange: str) -> list[tuple[str, ...]]:
        """Return the bindings of *exchange* that are in Redis, whatever separator they were made with."""
        with self.conn_or_acquire() as client:
            members = map(bytes_to_str, client.smembers(self.keyprefix_queue % exchange))
            return [parts for parts in (separators.binding(member, self.sep) for member in members) if parts]

    def _bind_again(self, exchange: str, bindings: Iterable[Any]) -> list[tuple[str, ...]]:
        table = []
        for queue, source, routing_key in list(bindings):
            if source == exchange:
                arguments = self.state.bindings[queue, source, routing_key]
                binding = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
                logger.warning("Redis has lost the binding of queue %s to exchange %s; made again", queue, exchange)
                self._queue_bind(exchange, *binding)
                table.append(tuple(part or "" for part in binding))
        return table

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        if exchange.startswith("reply.") and exchange.endswith(".pidbox"):
            # The one who asked has gone; answers to remote control are not dead-lettered.
            return self.typeof(exchange).lookup(self._bindings(exchange), exchange, routing_key, None)
        return super()._lookup(exchange, routing_key, default)

    def _check(self) -> None:
        """Look once a minute after what can go wrong unseen: lost bindings, elements set aside, foreign names."""
        if monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._checked = monotonic()
        active = set(self.active_queues)
        for exchange in {source for queue, source, _ in self.state.bindings if source and queue in active}:
            known = {(key, queue) for key, _, queue in self._bindings(exchange)}
            self._bind_again(
                exchange,
                [
                    (queue, source, key)
                    for queue, source, key in self.state.bindings
                    if source == exchange and queue in active and (key or "", queue) not in known
                ],
            )
        self._offer_undecodable()
        moved = separators.take_over(self, active, {source for _, source, _ in self.state.bindings if source})
        if moved:
            logger.warning(
                "Moved %d messages from lists with another separator to those of their queues. A client that sets "
                "'sep' in its broker_transport_options sends them: remove it there",
                moved,
            )

    def close(self) -> None:
        """Close the channel; what was asked for meanwhile goes back."""
        waiting, asked = self._in_poll, self._asked
        if not self.closed:
            self._hand_over()
        # kombu would wait for an answer.
        self._in_poll = self._asked = None
        if not self.closed and waiting and asked == "take":
            try:
                for name in waiting.read_response()[3::3]:
                    self._give_back(bytes_to_str(name))
            except (*self.connection_errors, ResponseError):
                self._asked = asked
                self._lose_answer()
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):
    """The same for a server that is found by Sentinel."""

    from_transport_options = (
        *stock.SentinelChannel.from_transport_options,
        "unacked_restore_interval",
        "undecodable_key",
    )


class Transport(stock.Transport):
    """kombu's Redis transport, with an atomic take.

    Attributes:
        on_undecodable: called with each element that is not a message, see :data:`Undecodable`. Set it on an instance,
            or as a ``staticmethod`` on the class. Until it returns True the element stays in the list
            ``celery.undecodable``; it can be called twice for one element.
    """

    Channel = Channel
    on_undecodable: Undecodable | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop of a worker wait for the channels."""
        super().register_with_event_loop(connection, loop)
        cycle = self.cycle
        cycle.hub = loop
        if kombu.VERSION < (5, 7):
            cycle._on_connection_disconnect = functools.partial(cycle.forget, loop)
        # kombu's own timer is slower, and a look that was cut short goes on soon.
        loop.call_repeatedly(1, cycle.maybe_restore_messages)


class SentinelTransport(Transport):
    """The same for a server that is found by Sentinel."""

    default_port = 26379
    Channel = SentinelChannel

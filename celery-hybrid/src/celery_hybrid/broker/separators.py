"""Names in Redis that were made with another separator than this channel's.

kombu joins a queue and its priority, and the three parts of a binding, with the transport option ``sep``. Every client
that was given only the broker's URL uses kombu's default. A list that was made with another separator is read by no
worker, and a binding makes stock kombu's look-up of its whole exchange fail. Earlier deployments of this project set
``sep`` to ``:`` for their workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str

#: Those whose lists and bindings are taken over.
KNOWN = (stock.Channel.sep, ":")
#: Priorities that have a list of their own.
_PRIORITIES = range(1, 10)
_MOST_AT_ONCE = 10_000

_TAKE_OVER = """
-- Moves messages from lists to others, where they are taken first and in their order. Other lists stay as they are.
-- KEYS: one list and where it goes, then the next.  ARGV: how many of each at most.  Returns how many were moved.
local moved = 0
for place = 1, #KEYS, 2 do
    local oldest = redis.pcall('LINDEX', KEYS[place], -1)
    if type(oldest) == 'string' and string.find(oldest, '"delivery_tag"', 1, true) then
        local found = redis.call('LRANGE', KEYS[place], -tonumber(ARGV[1]), -1)
        -- First written, then removed: an error in between loses none.
        for _, element in ipairs(found) do redis.call('RPUSH', KEYS[place + 1], element) end
        redis.call('RPOP', KEYS[place], #found)
        moved = moved + #found
    end
end
return moved
"""


def binding(member: str, own: str) -> tuple[str, str, str] | None:
    """Return routing key, pattern and queue of a member of a binding table; None when no known separator fits.

    Args:
        member: as it is in Redis.
        own: separator of the channel that reads, which is tried first.
    """
    for separator in dict.fromkeys((own, *KNOWN)):
        parts = member.split(separator)
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
    return None


def foreign_lists(names: Iterable[str], queues: Iterable[str], own: str) -> Iterator[tuple[str, str, int]]:
    """Yield list, queue and priority of each list whose name was made with another separator.

    Args:
        names: of lists in Redis.
        queues: that are declared.
        own: separator of the channel.
    """
    declared = set(queues)
    forms = [re.compile(rf"({re.escape(queue)})([^\w.-]{{1,4}})([1-9])", re.DOTALL) for queue in sorted(declared)]
    for name in names:
        for found in (form.fullmatch(name) for form in forms):
            if found and found[2] != own and name not in declared:
                yield name, found[1], int(found[3])


def take_over(channel: Any, queues: Iterable[str], exchanges: Iterable[str]) -> int:
    """Move what lies under another known separator to where this channel, and every stock client, looks for it.

    Safe beside other workers that do the same, and beside those that still use the other separator.

    Args:
        channel: of :mod:`celery_hybrid.broker.transport`.
        queues: whose lists are looked at.
        exchanges: whose bindings are looked at.

    Returns:
        How many messages were moved.
    """
    pairs = [
        name
        for queue in queues
        for separator in KNOWN
        if separator != channel.sep
        for priority in _PRIORITIES
        for name in (f"{queue}{separator}{priority}", channel._q_for_pri(queue, priority))
    ]
    with channel.conn_or_acquire() as client:
        for exchange in exchanges:
            _take_over_bindings(channel, client, exchange)
        if not pairs:
            return 0
        script = client.register_script(_TAKE_OVER)
        return int(script(keys=channel._script_keys(*pairs), args=[_MOST_AT_ONCE], client=client))


def _take_over_bindings(channel: Any, client: Any, exchange: str) -> None:
    table = channel.keyprefix_queue % (exchange,)
    # Since kombu 5.7: members that do not expire are in a second table.
    permanent = getattr(channel, "keyprefix_binding_permanent", "")
    tables = [table, *([permanent % (exchange,)] if permanent else [])]
    for key in tables:
        for member in client.smembers(key):
            text = bytes_to_str(member)
            parts = binding(text, channel.sep)
            if parts and channel.sep.join(parts) != text:
                # In this order: the queue is bound at every instant.
                client.sadd(key, channel.sep.join(parts))
                client.srem(key, member)

"""Messages that workers have taken and not acknowledged, read for people.

Redis holds them in a hash, by the names of their claims (:mod:`celery_hybrid.broker.claims`), and when each was last
claimed in an index. Both are read with commands that a worker needs itself: its user has no right to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from kombu.utils.json import loads


@dataclass(frozen=True)
class Unacknowledged:
    """One of them.

    Attributes:
        name: of its claim.
        taken: when it was last claimed, in seconds since the epoch, by the clock of who claimed it.
        entry: what the hash holds; None when it was acknowledged in between, or is missing.
    """

    name: bytes
    taken: float
    entry: bytes | None

    def unpacked(self) -> tuple[Any, str]:
        """Return the message, in kombu's envelope, and its routing key.

        Raises:
            ValueError: the entry is missing or not readable.
        """
        try:
            message, _, routing_key = loads((self.entry or b"").decode())
        except Exception as exc:
            raise ValueError(f"not an entry of kombu: {exc}") from exc
        return message, str(routing_key)


class UnacknowledgedReader:
    """Reads them.

    Args:
        channel: of a Redis transport, this package's or kombu's own.
        client: of Redis, one that adds no prefix to keys. Without it, one over the channel's pool.
    """

    def __init__(self, channel: Any, client: Any = None) -> None:
        # kombu's client prefixes the keys of some commands only, so whole names are given to one that prefixes none.
        self._redis = client or redis.Redis(connection_pool=channel.pool)
        self._entries = f"{channel.global_keyprefix}{channel.unacked_key}"
        self._index = f"{channel.global_keyprefix}{channel.unacked_index_key}"

    def count(self) -> int:
        """Return how many there are."""
        return int(self._redis.zcard(self._index))

    def read(self, limit: int = 0) -> list[Unacknowledged]:
        """Return them, the oldest first; at most so many, 0 for all."""
        taken: Any = self._redis.zrange(self._index, 0, limit - 1, withscores=True)
        entries = self._each("hget", self._entries, [name for name, _ in taken])
        return [Unacknowledged(name, at, entry) for (name, at), entry in zip(taken, entries, strict=True)]

    def still(self, names: Iterable[str]) -> list[str]:
        """Return those of these claims that are still there."""
        asked = list(names)
        scores = self._each("zscore", self._index, asked)
        return [name for name, score in zip(asked, scores, strict=True) if score is not None]

    def _each(self, command: str, key: str, members: list[Any]) -> list[Any]:
        """Return the answers to one command for each member, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            for member in members:
                getattr(pipe, command)(key, member)
            return list(pipe.execute())

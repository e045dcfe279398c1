# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for a payment provider, with the one property that matters: idempotency keys.

A real one is an HTTPS interface; the payment's id goes into its ``Idempotency-Key`` header. This one
keeps its ledger in Redis, so that the example runs without an account anywhere.

As with the sandboxes of real providers, some ids have a meaning: ``declined-…`` is refused, and
``unavailable-2-…`` gets no answer at the first two attempts.
"""

from __future__ import annotations

import re

import redis

_PREFIX = "payments:provider:"
_KEEP_SECONDS = 7 * 24 * 3600


class ProviderUnavailableError(ConnectionError):
    """The provider did not answer. Whether it acted is unknown; asking again with the same key is safe."""


class PaymentDeclinedError(Exception):
    """The provider refused the payment. Asking again would change nothing."""


class Provider:
    """Charges payments, each key once."""

    def __init__(self, server: redis.Redis) -> None:
        self._server = server

    def charge(self, key: str, amount: int, currency: str) -> str:
        """Charge an amount and return the provider's reference; the same key is charged only once.

        Args:
            key: idempotency key, the id of the payment.
            amount: in the currency's smallest unit, because money is not a floating-point number.
            currency: three-letter code.

        Raises:
            PaymentDeclinedError: refused for good.
            ProviderUnavailableError: no answer; try again.
        """
        if key.startswith("declined-"):
            raise PaymentDeclinedError(f"The provider declined payment {key}.")
        if match := re.match(r"unavailable-(\d+)-", key):
            attempts = int(self._server.incr(f"{_PREFIX}attempts:{key}"))
            self._server.expire(f"{_PREFIX}attempts:{key}", _KEEP_SECONDS)
            if attempts <= int(match[1]):
                raise ProviderUnavailableError(f"The provider did not answer about payment {key} (attempt {attempts}).")
        entry = f"{_PREFIX}ledger:{key}"
        if self._server.hsetnx(entry, "amount", f"{amount} {currency}"):
            self._server.hincrby(entry, "charges", 1)
        self._server.expire(entry, _KEEP_SECONDS)
        return f"ref-{key}"

    def charges(self, key: str) -> int:
        """Return how often the provider really charged a key."""
        return int(self._server.hget(f"{_PREFIX}ledger:{key}", "charges") or 0)

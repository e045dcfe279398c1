"""What can go wrong between an application and its results. No message ever carries a password."""

from __future__ import annotations

from celery.exceptions import ImproperlyConfigured


class HybridError(Exception):
    """Base of all errors of this package."""


class OptionError(HybridError, ImproperlyConfigured):  # type: ignore[misc]
    """``result_backend`` or one of its options is wrong; the message names it, the rule and the remedy."""


class ResultStoreError(HybridError):
    """RabbitMQ did not do what was asked."""


class ResultStoreUnreachableError(ResultStoreError, OSError):
    """RabbitMQ cannot be reached, went away, or did not answer in time; trying again is safe.

    It is an OSError because a worker's main process takes every other exception from a result backend for a
    reason to exit.
    """


class ResultStoreStartingError(ResultStoreUnreachableError):
    """RabbitMQ answers, but its streams do not yet: a few seconds after it has started."""


class RecordTooLargeError(ResultStoreError):
    """RabbitMQ does not take a message of that size, now or later."""


class TopologyError(ResultStoreError):
    """RabbitMQ lacks an object that results need, or has others than the options say."""


class RecordRefusedError(HybridError):
    """A record has a content type that is not accepted, or cannot be decoded; ``get()`` raises it, too."""


class IdError(HybridError, ValueError):
    """The id of a task or group is neither text nor a UUID, or it cannot be encoded."""


class OutboxError(HybridError):
    """The outbox cannot keep a record: it is full, or its file cannot be written."""

"""The verifier shares no code with the backend that it judges, so what both must know is compared here."""

from __future__ import annotations

from celery_hybrid import names
from celery_hybrid.rabbitmq.options import Options
from celery_hybrid.verify import canary, results


def test_verifier_and_backend_mean_the_same_objects() -> None:
    assert results.EXCHANGE == names.RESULTS_EXCHANGE
    assert results.STREAM.format(7) == names.archive_stream(7)
    assert (results.DLX, results.DEAD_LETTERS) == (names.DEAD_LETTER_EXCHANGE, names.DEAD_LETTER_QUEUE)
    assert Options().partitions == results.DEFAULT_PARTITIONS


def test_verifier_and_backend_look_into_the_same_stream() -> None:
    for _ in range(20):
        one = canary.Canary("celery", 16)
        assert one.stream == names.archive_stream(names.partition_of(one.id, 16))

"""Benchmarks: the result backend, the transport and ``rabbitmq_topology`` beside their rivals."""

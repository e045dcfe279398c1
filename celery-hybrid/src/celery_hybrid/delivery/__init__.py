"""Bringing records to RabbitMQ: directly, through an outbox while it is away, or through a journal."""

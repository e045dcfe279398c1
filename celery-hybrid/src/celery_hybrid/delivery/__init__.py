"""Bringing records to RabbitMQ: at once, through an outbox while it is away, or through a journal."""

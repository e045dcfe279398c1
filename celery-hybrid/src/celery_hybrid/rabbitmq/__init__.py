"""Connections to RabbitMQ and the records on them, for results and dead letters alike."""

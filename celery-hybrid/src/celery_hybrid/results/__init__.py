"""Results in RabbitMQ: the result backend, and all that it is made of."""

"""What waits and what is stuck in Redis, and the command that purges, puts back and recovers it."""

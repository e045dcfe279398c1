"""Tasks in Redis: taken at once or not at all, kept while a server is away, dead-lettered, recovered."""

"""Suites that break servers and workers under load, and count what is lost."""

"""The Redis side of the broker: transport, claims, scripts, and the count of chords."""

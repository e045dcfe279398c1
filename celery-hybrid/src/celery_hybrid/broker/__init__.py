"""The Redis side of the broker: transport, claims, what is unacknowledged, scripts, and the count of chords."""

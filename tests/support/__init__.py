"""What the suites share that load servers or break them."""

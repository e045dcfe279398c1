"""The tests of the collection; programs in here are started as ``python -m tests.…`` in the checkout."""

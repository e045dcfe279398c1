"""Dead letters: the task that is kept, the setting that says which, and the command for people."""

"""The `runcode` command: a tiny entry, a lazy table of commands, one error boundary."""

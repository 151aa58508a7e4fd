"""One module a command: parse, options, run."""

"""Input that somebody made to hang, to crash or to mislead a command: what the command line does with it."""

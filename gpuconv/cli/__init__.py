"""The command line: `main` finds the command, which has a module of its own (those of the trainer share one)."""

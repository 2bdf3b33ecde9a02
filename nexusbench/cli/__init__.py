"""The command line: one command per file; whatever is heavy is imported inside the command."""

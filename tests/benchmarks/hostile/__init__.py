"""Bad inputs of every kind for every command: ``python -m tests.benchmarks.hostile``."""

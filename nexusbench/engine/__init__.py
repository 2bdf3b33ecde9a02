"""The serving engine: one loop, one executor, its invariants."""

"""Measured sharing of a GPU beside the simulated one: SM counts, two streams, disjoint splits."""

"""Computations that the scheduler and the partitioner of one policy share."""

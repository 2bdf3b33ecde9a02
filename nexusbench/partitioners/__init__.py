"""Policies that size the partitions, one file each; see docs/adding-a-partitioner.md."""

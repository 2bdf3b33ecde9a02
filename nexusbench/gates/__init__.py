"""Performance gates: runs against a committed baseline, one verdict per metric, an exit code."""

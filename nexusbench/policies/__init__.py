"""What one policy computes, beside its scheduler and its partitioner."""

"""Where a way to serve pays: the same systems over GPUs, traffic, rates and SLOs, as a map."""

"""What a decoder computes with: the planner, paged KV, attention, dense layers, norms, rotation."""

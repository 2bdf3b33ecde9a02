"""What a decoder computes with: the planner, paged KV, attention, dense layers, norms, rotation;
native kernels for the CPU where they can be built, torch everywhere.
"""

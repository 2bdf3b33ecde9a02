"""Attention over paged KV, behind one interface: SDPA for any device, Triton kernels for CUDA."""

"""Paged KV cache: blocks, reference counts, prefix reuse."""

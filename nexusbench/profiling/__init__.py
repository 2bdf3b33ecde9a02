"""Profiling: sweep a device over SMs, batches and neighbours; derive facts; fit cost models."""

"""Devices: what computes batches and owns the only clock."""

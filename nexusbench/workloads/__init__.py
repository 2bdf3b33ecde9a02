"""Traces: read, transformed, generated. Requests as they arrive, before any engine sees them."""

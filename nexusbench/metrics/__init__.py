"""Metrics: pure functions over the event log, one small class each, found by listing the folder."""

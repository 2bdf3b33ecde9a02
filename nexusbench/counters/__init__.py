"""Counters: what hardware and system say they did, one source a file; a missing one says why."""

"""The real clock, for timing decisions and naming runs; devices own time, so it is here."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def stopwatch_ns() -> int:
    """A monotonic real-time reading in ns; differences only."""
    return time.perf_counter_ns()


def utc_now() -> datetime:
    """The wall clock in UTC, for run names and manifests."""
    return datetime.now(UTC)

"""The real clock. Devices own the time of a run; what acts or measures in real time reads this.

That is devices that compute, threads that sample counters, a sender that must be on time, the
timing of decisions and of sweeps, names of runs. No policy, cost model, metric or simulated
device may import it: their times are the device's (invariant I6).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

sleep = time.sleep
now_ns = time.perf_counter_ns  # a monotonic real-time reading; only differences mean anything


def utc_now() -> datetime:
    """The wall clock in UTC, for run names and manifests."""
    return datetime.now(UTC)

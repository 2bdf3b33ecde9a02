"""The one place of this package that reads a clock: sampling threads need a time for each sample.

Readings are stamped with it and never reach a policy; whoever times a run asks its device.
"""

from __future__ import annotations

import time


def now_ns() -> int:
    """A monotonic real-time reading in ns, on the clock that devices and the stopwatch use."""
    return time.perf_counter_ns()

"""Numbers at which the arithmetic of arrivals has a meaning; others are refused by name."""

from __future__ import annotations

import math

from nexusbench.core.errors import UsageError
from nexusbench.core.units import NS_PER_S

# A century. Times of a run are 63-bit nanoseconds (292 years), and it ends after its last arrival.
LONGEST_S = 3_155_760_000
# The largest context ever announced is far below; above it, 32-bit token counts overflow.
MAX_TOKENS = 2**31 - 1
MAX_HASH_ID = 2**64 - 1  # hashes of 64 bits


def check_number(name: str, value: float, least: float = 1e-9, most: float = 1e15) -> None:
    """Refuse what is no number from ``least`` to ``most``. Raises UsageError."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} {value:g} is impossible. Choose a number above 0")
    if not least <= value <= most:
        raise UsageError(f"{name} {value:g} is too extreme. Choose {least:g} to {most:g}")


def check_span(last_ns: float, note: str) -> None:
    """Refuse arrivals (and times to think), in ns, that no run can reach. Raises UsageError."""
    if not last_ns <= LONGEST_S * NS_PER_S:
        raise UsageError(
            f"{note}: it would last {last_ns / NS_PER_S / 31_557_600:.3g} years, more than the 100 "
            "that can be served. Choose a faster one"
        )


def check_window(start: float, end: float | None) -> None:
    """Refuse a window, in s, that holds nothing or begins before 0. Raises UsageError."""
    high = math.inf if end is None else end
    if not (math.isfinite(start) and start >= 0 and high > start):
        raise UsageError(
            f"window {start:g}:{'' if end is None else f'{end:g}'} is empty or starts before 0. "
            "Choose 0 <= START < END, in seconds"
        )

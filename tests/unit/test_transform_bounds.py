"""Option values at which the arithmetic of arrivals would break: refused by name."""

from __future__ import annotations

import pytest

from nexusbench.core.errors import UsageError
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace, TraceRequest


@pytest.mark.parametrize("value", [1e-300, 5e-324, 1e308, 2.0**63])
def test_numbers_at_which_arithmetic_breaks_are_refused_by_name(value: float) -> None:
    requests = [TraceRequest(str(i), i * 10**9, 10, 3) for i in range(5)]
    trace = Trace("t", requests)
    for name, change in (
        ("speed", lambda: transform.speed(trace, value)),
        ("rate", lambda: transform.rate(trace, value)),
        ("rate", lambda: transform.burstiness(trace, value, 1.0, 0)),
        ("burstiness", lambda: transform.burstiness(trace, 1.0, value, 0)),
        ("quantize-arrivals", lambda: transform.quantize_arrivals(trace, value)),
    ):
        with pytest.raises(UsageError, match=rf"{name} .*too extreme. Choose"):
            change()


def test_what_would_take_centuries_or_more_than_a_table_holds_is_refused() -> None:
    trace = Trace("t", [TraceRequest(str(i), i * 10**16, 10, 3) for i in range(5)])
    with pytest.raises(UsageError, match=r"replayed 1e-09 times as fast.*more than the 100"):
        transform.speed(trace, 1e-9)
    with pytest.raises(UsageError, match="concurrency 2147483648 is too extreme"):
        transform.closed_loop(trace, 2**31)
    with pytest.raises(UsageError, match="max-tokens '2147483648' is no bound"):
        transform.bounds(trace, 2**31)


def test_speeds_are_taken_within_the_documented_bounds() -> None:
    """docs/workloads.md: 1e-9 to 1e15."""
    trace = Trace("t", [TraceRequest(str(i), i * 10**6, 10, 3) for i in range(5)])
    for value in (1e-9, 1e15):
        assert len(transform.speed(trace, value).requests) == 5
    for value in (0.9e-9, 1.1e15):
        with pytest.raises(UsageError, match=r"too extreme\. Choose 1e-09 to 1e\+15"):
            transform.speed(trace, value)

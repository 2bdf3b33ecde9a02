"""The one sentence: who wins, and at what price."""

from __future__ import annotations

from nexusbench.comparison.headline import find_claims, headline, over_loads
from nexusbench.comparison.view import Column, RunView
from nexusbench.core.config import RunConfig
from tests.unit.manifests import RESOLVED
from tests.unit.summaries import distribution, scalar, summary_of


def column(label: str, status: str = "complete", **values: float) -> Column:
    given: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        tag, _, statistic = name.rpartition("_")
        given.setdefault(tag, {})[statistic] = value
    metrics = {
        tag: scalar(one["value"], "lower") if "value" in one else distribution("lower", **one)
        for tag, one in given.items()
    }
    config = RunConfig(trace="t.jsonl")
    return Column(label, [RunView(label, status, True, config, RESOLVED, summary_of(**metrics))])


FAST = {"ttft_mean": 100.0, "ttft_p95": 300.0, "tbt_p99": 20.0, "output_throughput_value": 200.0}


def test_winner_and_price() -> None:
    slow = {**FAST, "ttft_mean": 250.0, "ttft_p95": 100.0, "output_throughput_value": 220.0}
    found = headline([column("a", **FAST), column("b", **slow)])
    assert found.claim == "a has the lowest mean TTFT (100.0 ms: 2.5x lower than b)."
    assert found.price == (
        "The price: its output throughput is 200.0 tok/s, 9.1 % lower than b; "
        "its p95 TTFT is 300.0 ms, 3.0x that of b."
    )


def test_no_price() -> None:
    slow = {name: value * (0.5 if "output" in name else 2) for name, value in FAST.items()}
    found = headline([column("b", **slow), column("a", **FAST)])
    assert found.claim.startswith("a has the lowest mean TTFT (100.0 ms: 2.0x lower than b), the ")
    assert found.price == ""


def test_level_and_shared() -> None:
    same = headline([column("a", **FAST), column("b", **FAST)])
    assert same.text.startswith("All 2 are level: mean TTFT 100.0 ms, p99 TBT 20.0 ms")
    third = {**FAST, "tbt_p99": 80.0}
    shared = headline([column("a", **FAST), column("b", **FAST), column("c", **third)])
    assert "the lowest p99 TBT (20.0 ms: 4.0x lower than c, level with b)" in shared.claim


def test_what_was_cut_short_never_wins() -> None:
    faster = {**FAST, "ttft_mean": 1.0}
    found = headline([column("a", **FAST), column("b", "interrupted", **faster)])
    assert found.claim.startswith("a: mean TTFT 100.0 ms")
    assert found.claim.endswith("Nothing to compare it with; 1 other was cut short.")
    nothing = headline([column("b", "failed", **faster)])
    assert nothing.claim.startswith("No run came to its end")


def test_over_loads() -> None:
    slow = {**FAST, "ttft_mean": 250.0}
    loads = [
        find_claims([column("a", **FAST), column("b", **slow)]),
        find_claims([column("a", **slow), column("b", **FAST)]),
    ]
    assert over_loads(loads) == (
        "Lowest mean TTFT: a at 1 of 2 loads, b at 1 of 2 loads; lowest p99 TBT: all level at "
        "both loads; highest output throughput: all level at both loads."
    )
    assert over_loads([]) == ""

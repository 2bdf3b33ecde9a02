"""The sentences under ``nexusbench capacity``: who, by how much, how surely, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest

from nexusbench.cli._capacity_verdict import capacity_verdict
from nexusbench.experiments.capacity import Capacity
from nexusbench.experiments.rate_search import FoundRate


def found(seed: int, kept: float) -> FoundRate:
    return FoundRate(
        seed=seed, step=0, kept=kept, broken_at=kept * 1.02, breaks=(), little=(0.0, 0.0, 0.0),
        monotone=True, looks=(), simulated=True,
    )  # fmt: skip


def capacity(*kept: float, breaks: str = "ttft:p99<2000", **other: Any) -> Capacity:
    rate = sum(kept) / len(kept)
    fields: dict[str, Any] = {
        "position": 0, "rate": rate, "low": min(kept), "high": max(kept),
        "worst_seed": min(kept), "at_least": False, "none": rate == 0,
        "breaks": {breaks: len(kept)}, "little": None, "monotone": True, "probes": 9,
        "probes_kept": 0, "stopped": 0, "simulated": True,
        "found": tuple(found(seed, one) for seed, one in enumerate(kept)),
    }  # fmt: skip
    return Capacity(**fields | other)


def said(**capacities: Capacity) -> str:
    return capacity_verdict(list(capacities), list(capacities.values()), 1.02)


def test_a_winner_with_its_lead_and_what_ends_it() -> None:
    text = said(nexus=capacity(1.0, 1.1), vllm=capacity(3.0, 3.12, breaks="tbt:p99<100"))
    assert text == (
        "Simulated: vllm keeps the SLO up to the highest rate (3.06 req/s: 2.9x higher than "
        "nexus). It is ahead of nexus in 2 of 2 draws. Broken first beyond that: vllm "
        "tbt:p99<100; nexus ttft:p99<2000."
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (capacity(1.0, 3.0), ("Not sure: ahead of b in 1 of 2 draws, 95 % interval", "[-")),
        (capacity(1.0, 1.2, at_least=True), ("the trace ended before b broke the SLO",)),
        (capacity(0.0, 0.0, breaks="tbt:p99<1"), ("b: the SLO is kept at no rate", "(2.2 req/s)")),
    ],
)
def test_what_is_not_sure_says_so(other: Capacity, words: tuple[str, ...]) -> None:
    text = said(a=capacity(2.2, 2.2), b=other)
    for word in words:
        assert word in text


def test_rates_that_the_search_did_not_tell_apart_are_level() -> None:
    text = said(a=capacity(2.0, 2.05), b=capacity(2.0, 2.02))
    assert "(2.02 req/s: level with b). Broken" in text


def test_one_draw_one_policy_and_nobody() -> None:
    assert "one draw only" in said(a=capacity(2.0), b=capacity(1.0))
    assert said(a=capacity(2.0)) == ""
    assert said(a=capacity(0.0), b=capacity(0.0)).endswith("keeps the SLO at any rate.")

"""Does ``capacity`` find what a grid of rates finds, and ``advise`` what trying everything finds?

    python -m tests.benchmarks.capacity capacity [TRACE SLO]      about 10 minutes on two cores
    python -m tests.benchmarks.capacity advise [TRACE SLO RATE]   about 5 minutes

The grid runs every rate to its end, on draws of the arrivals that the search has not seen; nothing
is remembered between the two. docs/capacity.md shows what came out.
"""

from __future__ import annotations

import math
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.experiments.advise import Question, advise, scored_slo
from nexusbench.experiments.candidates import find_candidates
from nexusbench.experiments.capacity import CapacitySearch, find_capacities, trace_load
from nexusbench.experiments.judging import attained, judge, strain
from nexusbench.experiments.leads import DrawScore, Rated, lead
from nexusbench.experiments.pool import cores, run_all
from nexusbench.experiments.probe import run_probe
from nexusbench.experiments.rate_search import lattice_rate, lattice_step
from nexusbench.metrics.slo import Slo, parse_slo

WORKLOADS = Path(__file__).parents[2] / "workloads"
SEEDS, UNSEEN = tuple(range(5)), tuple(range(100, 112))
GRID_RATIO = 1.04


def kept(item: tuple[RunConfig, Slo]) -> bool:
    """One point of the grid."""
    return judge(run_probe(item[0], None), item[1]).outcome == "kept"


def scored(item: tuple[RunConfig, Slo]) -> DrawScore:
    """One candidate on one draw."""
    single = scored_slo(item[1])
    probe = run_probe(item[0], None)
    return DrawScore(attained(probe, single), strain(probe, single.per_request()), kept=False)


def over(function: Any, items: list[Any]) -> list[Any]:
    found = dict(run_all(function, items, cores()))
    return [found[index] for index in range(len(items))]


def base(trace: str, **fields: Any) -> RunConfig:
    return RunConfig(
        trace=str(WORKLOADS / f"{trace}.jsonl"), device="sim:l20", burstiness=1.0, **fields
    )


def check_capacity(trace: str, text: str) -> None:
    """Three schedulers: the interval of five draws beside the grid over twelve others."""
    slo = parse_slo([text])
    configs = tuple(base(trace, scheduler=name) for name in ("nexus", "vllm", "sglang"))
    began = now_ns()
    results = find_capacities(CapacitySearch(configs=configs, slo=slo, seeds=SEEDS), cores())
    print(f"{trace}, {slo}: searched in {(now_ns() - began) / 1e9:.0f} s", flush=True)
    for config, found in zip(configs, results, strict=True):
        low = lattice_step(0.6 * found.rate, GRID_RATIO)
        high = lattice_step(1.5 * found.rate, GRID_RATIO)
        rates = [lattice_rate(step, GRID_RATIO) for step in range(low, high + 1)]
        items = [
            (msgspec.structs.replace(config, request_rate=rate, seed=seed), slo)
            for seed in UNSEEN
            for rate in rates
        ]
        verdicts = over(kept, items)
        best, uneven = [], 0
        for place in range(len(UNSEEN)):
            row = verdicts[place * len(rates) : (place + 1) * len(rates)]
            number = sum(1 for _ in takewhile(bool, row))
            uneven += any(row[number:])
            best.append(rates[number - 1] if number else math.nan)
        mean = sum(best) / len(best)
        assert found.high is not None
        inside = "inside" if found.low <= mean <= found.high else "OUTSIDE"
        print(
            f"  {config.scheduler:7} found {found.rate:.3g} [{found.low:.3g}, {found.high:.3g}] in "
            f"{found.probes} probes, {found.stopped} stopped; grid {mean:.3g} over {len(best)} "
            f"unseen draws ({min(best):.3g} to {max(best):.3g}), {len(items)} runs: {inside}; "
            f"draws that keep it again beyond a rate that breaks it: {uneven}",
            flush=True,
        )


def check_advice(trace: str, text: str, rate: float, limit: int = 300) -> None:
    """The advice beside all candidates on four unseen draws."""
    slo = parse_slo([text])
    config = base(trace, request_rate=rate, limit=limit, goodput=scored_slo(slo).per_request())
    candidates, _ = find_candidates()
    requests = trace_load(config)[0]
    question = Question(
        config=config, slo=slo, candidates=tuple(candidates), requests=requests, seeds=SEEDS,
        most_draws=4 * len(SEEDS),
    )  # fmt: skip
    began = now_ns()
    advice = advise(question, cores())
    seconds = (now_ns() - began) / 1e9
    draws = UNSEEN[:4]
    items = [
        (msgspec.structs.replace(c.apply(config), seed=seed), slo)
        for c in candidates
        for seed in draws
    ]
    began = now_ns()
    scores = over(scored, items)
    whole = (now_ns() - began) / 1e9
    count = len(draws)
    grid = [
        Rated(candidate, tuple(scores[place * count : (place + 1) * count]), 0)
        for place, candidate in enumerate(candidates)
    ]
    grid.sort(key=lambda one: -one.points)
    best, second = grid[0], grid[1]
    chosen = advice.final[0].candidate
    tie = [one.candidate for one in advice.final[: advice.tied + 1]]
    place = [one.candidate for one in grid].index(chosen)
    margin = advice.margin
    assert margin is not None
    print(
        f"{trace} at {rate:g} req/s, {slo}: advised {shown(advice.final[0])} in {seconds:.0f} s; "
        f"lead {margin.mean:.3g}, tied with {advice.tied}; rounds {advice.rounds}"
    )
    clear = lead(best, second, requests)
    print(
        f"  the grid of {len(grid)} in {whole:.0f} s: best {shown(best)}; lead {clear.mean:.3g}, "
        f"p {clear.chance:.2g}; the advised is number {place + 1} there, {shown(grid[place])}; the "
        f"grid's best is {'' if best.candidate in tie else 'NOT '}among the advised; it leads the "
        f"advised for sure: {place > 0 and lead(best, grid[place], requests).sure}",
        flush=True,
    )


def shown(one: Rated) -> str:
    """A candidate with its score."""
    return f"{one.candidate} ({one.attained:.2f} % within, {100 * one.strain:.0f} % of bounds used)"


def main(words: list[str]) -> None:
    """One of the two checks, on the shipped workloads or on what is given."""
    if words[:1] == ["capacity"]:
        usual = [("sharegpt", "ttft:p99<2000,tpot:p99<100"), ("arxiv", "ttft:5000,tbt:400")]
        for trace, slo in [(words[1], words[2])] if words[1:] else usual:
            check_capacity(trace, slo)
    elif words[:1] == ["advise"]:
        loads = [("sharegpt", "ttft:1000,tbt:100", 5.0), ("mixed", "ttft:2000,tbt:100", 1.0),
                 ("ldc", "ttft:5000,tbt:200", 0.6)]  # fmt: skip
        if words[1:]:
            loads = [(words[1], words[2], float(words[3]))]
        for trace, slo, rate in loads:
            check_advice(trace, slo, rate)
    else:
        print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

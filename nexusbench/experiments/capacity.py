"""Capacity: the highest rate under an SLO, with an interval over draws of the arrivals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.comparison.load import worst_load
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.units import NS_PER_S
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.rate_search import FoundRate, SearchTask, lattice_step, search_rate
from nexusbench.metrics.slo import Slo
from nexusbench.metrics.summary import TAIL_SAMPLES, interval
from nexusbench.workloads.head import load_head

# N and X R may differ by so much of N before the system counts as not stationary.
LITTLE_TOLERANCE = 0.1


class CapacitySearch(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: ``configs`` differ in their policies; ``precision`` is the step of the rate in
    percent; each of ``seeds`` redraws the arrivals.
    """

    configs: tuple[RunConfig, ...]
    slo: Slo
    seeds: tuple[int, ...]
    precision: float = 2.0
    cache: Path | None = None
    fresh: bool = False

    @property
    def ratio(self) -> float:
        """Of neighbouring rates."""
        return 1.0 + self.precision / 100.0


class LittleCheck(msgspec.Struct, frozen=True):
    """Little's law at the capacity: means over seeds, and ``deviation`` = (N - X R) / N with its 95
    % interval. ``held``: within tolerance, or not to be told from 0.
    """

    number: float
    rate: float
    stay: float
    deviation: float
    low: float | None
    high: float | None
    held: bool


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy can take, requests per second.

    ``rate`` is the mean over seeds of the highest rate that keeps the SLO; ``low`` and ``high``
    span the 95 % interval of Student's t over the seeds, from the rates that keep it to the next
    ones, which do not. A single seed has the bracket of its search. ``breaks``: bound -> in how
    many seeds it is the one broken worst at the next rate. ``at_least``: some seed did not break
    before its trace ended. ``none``: no seed keeps the SLO at any rate. ``overloaded``: in how many
    seeds requests arrive faster than they leave at the rate that keeps it.
    """

    position: int  # in the search's configs
    rate: float
    low: float
    high: float | None
    worst_seed: float
    at_least: bool
    none: bool
    breaks: dict[str, int]
    little: LittleCheck | None
    monotone: bool
    probes: int
    probes_kept: int
    stopped: int  # probes that were stopped early
    simulated: bool
    found: tuple[FoundRate, ...]
    overloaded: int = 0


def trace_load(config: RunConfig) -> tuple[int, float, bool]:
    """Number of requests of ``config``'s trace, its mean rate (0 where all arrive at once), and
    whether it is a closed loop. Raises UsageError for a trace of one arrival.
    """
    trace = load_head(Path(config.trace), limit=config.limit)
    requests = trace.requests[: config.limit]
    if trace.concurrency:
        return len(requests), 0.0, True
    timed = [request for request in requests if not request.follows]
    if len(timed) < 2:
        raise UsageError(f"'{trace.name}': {len(timed)} arrival has no rate. Use a longer trace")
    span = timed[-1].arrival_ns
    return len(requests), (len(timed) - 1) * NS_PER_S / span if span else 0.0, False


def check_search(search: CapacitySearch) -> tuple[int, float]:
    """Number of requests and mean rate of the trace (0 where it has none). Raises UsageError for a
    trace whose rate cannot be changed.
    """
    requests, rate, closed = trace_load(search.configs[0])
    if closed:
        raise UsageError(
            f"{search.configs[0].trace}: a closed loop has no rate to search for; its users send "
            "when they are free"
        )
    return requests, rate


def find_capacities(
    search: CapacitySearch,
    jobs: int,
    told: Callable[[int, FoundRate], object] = lambda position, found: None,
) -> list[Capacity]:
    """The capacity of each config, in order; ``told`` hears of each finished search.

    First one seed of each, from the trace's own rate; then the others, from where that one ended.
    """
    _, own = check_search(search)
    begin = lattice_step(own, search.ratio) if own else 0
    found: list[list[FoundRate]] = [[] for _ in search.configs]
    first, *others = search.seeds
    tasks = [(p, _task(search, p, first, begin, hinted=False)) for p in range(len(search.configs))]
    _do(tasks, jobs, found, told)
    rest = [
        (position, _task(search, position, seed, found[position][0].step, hinted=True))
        for position in range(len(search.configs))
        for seed in others
    ]
    _do(rest, jobs, found, told)
    return [capacity_of(position, results) for position, results in enumerate(found)]


def _task(
    search: CapacitySearch, position: int, seed: int, near: int, *, hinted: bool
) -> SearchTask:
    return SearchTask(
        config=msgspec.structs.replace(search.configs[position], seed=seed),
        slo=search.slo,
        ratio=search.ratio,
        near=near,
        hinted=hinted,
        cache=search.cache,
        fresh=search.fresh,
    )


def _do(
    tasks: Sequence[tuple[int, SearchTask]],
    jobs: int,
    found: list[list[FoundRate]],
    told: Callable[[int, FoundRate], object],
) -> None:
    results: Iterator[tuple[int, FoundRate | Lost]]
    results = run_all(search_rate, [task for _, task in tasks], jobs)
    for index, result in results:
        position = tasks[index][0]
        if isinstance(result, Lost):
            raise UsageError(f"a search was given up: {result.reason}. Try --jobs 1")
        found[position].append(result)
        told(position, result)


def capacity_of(position: int, unordered: Sequence[FoundRate]) -> Capacity:
    """One policy's capacity from the search of each seed."""
    found = sorted(unordered, key=lambda one: one.seed)
    kept = interval([one.kept for one in found])
    ends = [one.broken_at for one in found if one.broken_at is not None]
    bounded = len(ends) == len(found)
    beyond = interval(ends) if bounded else None
    low = kept.mean if kept.low is None else max(0.0, kept.low)
    high = None
    if beyond is not None:
        high = beyond.mean if beyond.high is None else beyond.high
    looks = [look for one in found for look in one.looks]
    return Capacity(
        position=position,
        rate=kept.mean,
        low=low,
        high=high,
        worst_seed=min(one.kept for one in found),
        at_least=not bounded,
        none=all(one.kept == 0 for one in found),
        breaks=dict(Counter(one.breaks[0].bound for one in found if one.breaks).most_common()),
        little=_little([one.little for one in found if one.little is not None]),
        monotone=all(one.monotone for one in found),
        probes=len(looks),
        probes_kept=sum(look.kept_before for look in looks),
        stopped=sum(not look.complete for look in looks),
        simulated=all(one.simulated for one in found),
        found=tuple(found),
        overloaded=sum(worst_load([one.load]) is not None for one in found),
    )


def _little(measured: Sequence[tuple[float, float, float]]) -> LittleCheck | None:
    known = [(n, x, r) for n, x, r in measured if n > 0]
    if not known:
        return None
    number, rate, stay = (sum(values) / len(known) for values in zip(*known, strict=True))
    deviation = interval([(n - x * r) / n for n, x, r in known])
    mean, low, high = deviation.mean, deviation.low, deviation.high
    spans = low is not None and high is not None and low <= 0 <= high
    held = abs(mean) <= LITTLE_TOLERANCE or spans
    return LittleCheck(number, rate, stay, mean, low, high, held)


def weak_bounds(slo: Slo, requests: int) -> list[str]:
    """Bounds on percentiles that fewer than TAIL_SAMPLES requests lie beyond. TBT pools gaps, of
    which there are many more.
    """
    weak = []
    for bound in slo.of_statistics:
        if bound.statistic.startswith("p") and bound.key != "tbt":
            beyond = requests * (100 - float(bound.statistic[1:])) / 100
            if beyond < TAIL_SAMPLES:
                weak.append(str(bound))
    return weak

"""The highest rate at which one draw of arrivals keeps an SLO: galloping, then bisection.

Rates lie on a lattice, ratio^k requests per second, so that searches for other SLOs try the same
rates and find their probes. Arrivals of one seed are the same gamma draws at every rate, stretched:
within a seed the verdict changes with the load alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from nexusbench.comparison.load import Load
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError
from nexusbench.experiments.judging import BrokenBound, Verdict, attained, judge, reached
from nexusbench.experiments.probe import PROBE_SUFFIX, Probe, find_probe, run_probe
from nexusbench.experiments.store import Store
from nexusbench.metrics.slo import Slo

# The first stride from a guess, as a factor of the rate; around a neighbour's result, steps.
_STRIDE, _NEAR_STEPS = 2.0, 3
# With so few requests in the system at a time, waiting for each other is not what breaks an SLO.
_ALONE = 0.05
# Finishing less than this share of what is offered: all that matters of the arrivals is over.
_SATURATED = 0.5
_MOST_PROBES = 60


class SearchTask(msgspec.Struct, frozen=True, kw_only=True):
    """One search: ``config`` without a rate but with its seed; ``near`` is where to begin (a place
    on the lattice), ``hinted`` if that is another seed's result.
    """

    config: RunConfig
    slo: Slo
    ratio: float
    near: int
    hinted: bool
    cache: Path | None
    fresh: bool = False


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe showed: ``values`` per bound in ms (percent for ``attained``), None where it
    is infinite; least values if the run was stopped after ``ended`` requests.
    """

    step: int
    rate: float
    outcome: str
    values: dict[str, float | None]
    broken: tuple[BrokenBound, ...]
    complete: bool
    ended: int
    kept_before: bool  # the probe was in the cache


class FoundRate(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one search. ``kept`` is a rate that keeps the SLO (0: none does), ``broken_at``
    the next one of the lattice, which does not (None: the trace ends before it breaks). Below
    ``kept`` every rate tried keeps it, unless not ``monotone``. ``little`` and ``load`` are those
    of the probe at ``kept``.
    """

    seed: int
    step: int
    kept: float
    broken_at: float | None
    breaks: tuple[BrokenBound, ...]
    little: tuple[float, float, float] | None
    monotone: bool
    looks: tuple[Look, ...]
    simulated: bool
    load: Load | None = None


def lattice_rate(step: int, ratio: float) -> float:
    """Place ``step`` of the lattice, requests per second, in five digits."""
    return float(f"{ratio**step:.5g}")


def lattice_step(rate: float, ratio: float) -> int:
    """The place nearest to ``rate``."""
    return round(math.log(rate) / math.log(ratio))


class _Search:
    """The probes of one search, each made at most once."""

    def __init__(self, task: SearchTask) -> None:
        self.task = task
        self.store = (
            None if task.cache is None else Store(task.cache, PROBE_SUFFIX, fresh=task.fresh)
        )
        self.probes: dict[int, Probe] = {}
        self.verdicts: dict[int, Verdict] = {}
        self.looks: list[Look] = []

    def kept(self, step: int) -> bool:
        """Whether the SLO is kept at a place of the lattice."""
        if step not in self.verdicts:
            self._look(step)
        return self.verdicts[step].outcome == "kept"

    def _look(self, step: int) -> None:
        if len(self.looks) >= _MOST_PROBES:
            raise NexusbenchError(
                f"no capacity found in {_MOST_PROBES} probes between {min(self.probes)} and "
                f"{max(self.probes)} steps: the verdict does not settle"
            )
        task, slo = self.task, self.task.slo
        rate = lattice_rate(step, task.ratio)
        config = msgspec.structs.replace(task.config, request_rate=rate)
        probe = find_probe(config, self.store)
        before = probe is not None and judge(probe, slo).outcome != "open"
        if probe is None or not before:
            probe = run_probe(config, self.store, lambda p: judge(p, slo).outcome == "broken")
        verdict = judge(probe, slo)
        self.probes[step], self.verdicts[step] = probe, verdict
        values = {str(bound): reached(probe, bound) for bound in slo.of_statistics}
        if slo.of_requests:
            values["attained"] = attained(probe, slo)
        self.looks.append(
            Look(
                step=step,
                rate=rate,
                outcome=verdict.outcome,
                values={k: v if math.isfinite(v) else None for k, v in values.items()},
                broken=verdict.broken,
                complete=probe.complete,
                ended=probe.ended,
                kept_before=before,
            )
        )

    def alone(self, step: int) -> bool:
        """Few requests overlap at this rate: N = X R with R of those that ended."""
        probe = self.probes[step]
        stays = [value for value in probe.e2e if math.isfinite(value)]
        mean = sum(stays) / len(stays) / 1e3 if stays else 0.0
        return probe.rate * mean < _ALONE

    def saturated(self, step: int) -> bool:
        """More is offered than ever ends: a higher rate only shortens the arrivals."""
        probe = self.probes[step]
        return probe.complete and probe.throughput < _SATURATED * probe.rate


def search_rate(task: SearchTask) -> FoundRate:
    """Search the lattice for the place where the SLO breaks. Raises what runs raise."""
    search = _Search(task)
    stride = _NEAR_STEPS if task.hinted else max(1, lattice_step(_STRIDE, task.ratio))
    low: int | None
    high: int | None
    if search.kept(task.near):
        low, high = _upwards(search, task.near, stride)
    else:
        low, high = _downwards(search, task.near, stride)
    if high is not None and low is not None:
        while high - low > 1:
            middle = (low + high) // 2
            if search.kept(middle):
                low = middle
            else:
                high = middle
    return _found(search, low, high)


def _upwards(search: _Search, step: int, stride: int) -> tuple[int, int | None]:
    low = step
    while not search.saturated(low):
        if not search.kept(low + stride):
            return low, low + stride
        low, stride = low + stride, 2 * stride
    return low, None


def _downwards(search: _Search, step: int, stride: int) -> tuple[int | None, int]:
    high = step
    while not search.alone(high):
        if search.kept(high - stride):
            return high - stride, high
        high, stride = high - stride, 2 * stride
    return None, high


def _found(search: _Search, low: int | None, high: int | None) -> FoundRate:
    task = search.task
    lost = [step for step, verdict in search.verdicts.items() if verdict.outcome != "kept"]
    kept = [step for step, verdict in search.verdicts.items() if verdict.outcome == "kept"]
    return FoundRate(
        seed=task.config.seed,
        step=low if low is not None else high or 0,
        kept=0.0 if low is None else lattice_rate(low, task.ratio),
        broken_at=None if high is None else lattice_rate(high, task.ratio),
        breaks=() if high is None else search.verdicts[high].broken,
        little=None if low is None else search.probes[low].little,
        monotone=not kept or not lost or max(kept) < min(lost),
        looks=tuple(sorted(search.looks, key=lambda look: look.step)),
        simulated=all(probe.simulated for probe in search.probes.values()),
        load=None if low is None else search.probes[low].load,
    )

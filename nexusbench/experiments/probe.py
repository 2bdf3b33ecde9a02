"""One probe: a run at one rate, kept as what any SLO can be judged by; stopped once it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.comparison.load import Load, load_of_run
from nexusbench.core.config import RunConfig
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.engine.served import Served
from nexusbench.experiments.keys import run_key
from nexusbench.experiments.store import Store
from nexusbench.metrics.requests import request_p99_gaps
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.slo import STATISTICS
from nexusbench.serving.assembly import assemble
from nexusbench.serving.runner import events_so_far, serve

PROBE_SUFFIX = ".probe"
_SCHEMA = 3
# How often a running probe is looked at: arrivals and ends together are twice the requests.
_LOOKS = 24
_NEVER = float("inf")

FloatArray = npt.NDArray[np.float64]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the numbers that SLOs ask for. Times in ms, one value per request of the trace.

    Of a run that was stopped every value is the least that it could still have become, so what is
    broken by them is broken for sure. A request that did not finish has infinite ones. ``tpot`` and
    ``own_gap`` (the p99 of a request's gaps) are NaN where an answer of one token has no gap.
    ``gaps``: statistics of all gaps due, pooled; those of tokens that were never made are infinite.
    ``little``: N, X (1/s), R (s) of :func:`littles_law`. ``load`` is of whole runs.
    """

    rate: float
    seed: int
    complete: bool
    ttft: list[float]
    queueing: list[float]
    tpot: list[float]
    e2e: list[float]
    own_gap: list[float]
    gaps: dict[str, float]
    little: tuple[float, float, float]
    throughput: float  # finished requests per second of the whole run
    ended: int  # requests that had ended
    digest: str = ""
    simulated: bool = True
    load: Load | None = None
    schema: int = _SCHEMA


class _Lost(Exception):
    """Ends a run whose verdict is certain; carries the probe so far."""

    def __init__(self, probe: Probe) -> None:
        super().__init__("the verdict is known")
        self.probe = probe


def find_probe(config: RunConfig, store: Store | None) -> Probe | None:
    """The kept probe of ``config``, if there is one."""
    content = None if store is None else store.get(run_key(config))
    try:
        probe = None if content is None else msgspec.msgpack.decode(content, type=Probe)
    except msgspec.DecodeError:
        return None
    return probe if probe is not None and probe.schema == _SCHEMA else None


def run_probe(
    config: RunConfig, store: Store | None, lost: Callable[[Probe], bool] | None = None
) -> Probe:
    """Serve ``config`` and keep its probe; ``lost`` is asked now and then whether to go on.

    Raises what a run raises.
    """
    assembly = assemble(config)
    next_look = len(assembly.requests) * 2 // _LOOKS

    def watch(engine: Served) -> None:
        nonlocal next_look
        seen = engine.num_arrived + engine.num_ended
        if lost is not None and seen >= next_look:
            next_look = seen + max(1, len(assembly.requests) * 2 // _LOOKS)
            probe = probe_of(config, events_so_far(assembly, engine), engine.now_ns)
            if lost(probe):
                raise _Lost(probe)

    try:
        result = serve(assembly, watch=watch)
        probe = probe_of(config, result.events, None, result.event_digest)
    except _Lost as stop:
        probe = stop.probe
    finally:
        assembly.device.close()
    if store is not None:
        store.put(run_key(config), msgspec.msgpack.encode(probe))
    return probe


def probe_of(config: RunConfig, run: RunEvents, now: int | None, digest: str = "") -> Probe:
    """The numbers of a run; ``now`` (ns) is where it stands, None once it has ended."""
    end = run.window[1] if now is None else now
    missed = (run.outcome > 0) | ((run.outcome < 0) & (now is None))
    going = (run.outcome < 0) & run.offered & (now is not None)
    answered = run.num_output_tokens > 0
    waited = np.where(going, end - run.arrival, 0)
    due = np.maximum(run.requests["output_tokens"] - 1, 0)

    def settled(known: npt.NDArray[Any], times: npt.NDArray[Any]) -> FloatArray:
        values = np.where(known, times, waited).astype(np.float64) / NS_PER_MS
        values[missed] = _NEVER
        return values

    last = np.where(run.outcome == 0, run.ended, end)
    begun = np.where(answered, last - run.first_token, 0)
    tpot = np.where(due > 0, begun / np.maximum(due, 1) / NS_PER_MS, np.nan)
    own_gap = np.where(due > 0, request_p99_gaps(run) / NS_PER_MS, np.nan)
    # The p99 of a request's gaps may yet sink: until it has all of them it counts for nothing.
    own_gap[going] = 0.0
    tpot[missed] = own_gap[missed] = _NEVER
    return Probe(
        rate=config.request_rate or 0.0,
        seed=config.seed,
        complete=now is None,
        ttft=settled(answered, run.first_token - run.arrival).tolist(),
        queueing=settled(run.first_admitted >= 0, run.first_admitted - run.arrival).tolist(),
        tpot=tpot.tolist(),
        e2e=settled(run.outcome == 0, run.ended - run.arrival).tolist(),
        own_gap=own_gap.tolist(),
        gaps=_gap_statistics(run, due, missed),
        little=littles_law(run, end),
        throughput=int(run.finished.sum()) * NS_PER_S / max(1, end),
        ended=int((run.outcome >= 0).sum()),
        digest=digest,
        simulated=run.facts.simulated,
        load=load_of_run(run) if now is None else None,
    )


def _gap_statistics(
    run: RunEvents, due: npt.NDArray[Any], missed: npt.NDArray[Any]
) -> dict[str, float]:
    """Of all gaps that the trace's outputs have: 0 for those that may still follow, infinite for
    those that never will.
    """
    gaps = np.sort(run.gaps) / NS_PER_MS
    # One at least for each: an answer of one token that was never made has no gap to be late by.
    never = int(np.maximum(due - run.num_gaps, 1)[missed].sum())
    total = max(int(due.sum()), len(gaps) + never)
    ordered = np.concatenate((np.zeros(total - len(gaps) - never), gaps, np.full(never, _NEVER)))
    return {name: statistic(ordered, name) for name in STATISTICS}


def statistic(ordered: FloatArray, name: str) -> float:
    """One of STATISTICS of values in ascending order, infinite ones last; 0 without any.

    Percentiles interpolate linearly, as everywhere; between a number and infinity lies infinity.
    """
    if not len(ordered):
        return 0.0
    if name == "mean":
        return float(ordered.mean())
    place = (1.0 if name == "max" else float(name[1:]) / 100) * (len(ordered) - 1)
    low = int(place)
    below, above = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    if place == low:
        return float(below)
    return _NEVER if np.isinf(above) else float(below + (above - below) * (place - low))


def littles_law(run: RunEvents, end: int) -> tuple[float, float, float]:
    """Mean number in the system N, rate of ends X (1/s), mean time of those in it R (s), over the
    last three quarters of the arrivals.

    Three different sums: N from how many are in at each moment, X and R from what leaves. While
    the system is stationary N = X R; while a queue grows those that leave have seen a shorter one,
    and N is larger.
    """
    arrivals = run.arrival[run.offered]
    if len(arrivals) < 2:
        return 0.0, 0.0, 0.0
    stop = int(arrivals.max())
    start = int(arrivals.min()) + (stop - int(arrivals.min())) // 4
    if stop <= start:
        return 0.0, 0.0, 0.0
    left = np.where(run.ended >= 0, run.ended, end)[run.offered]
    inside = np.minimum(left, stop) - np.maximum(arrivals, start)
    number = float(np.maximum(inside, 0).sum()) / (stop - start)
    leaving = (left >= start) & (left < stop) & (run.ended[run.offered] >= 0)
    rate = float(leaving.sum()) * NS_PER_S / (stop - start)
    stay = float((left - arrivals)[leaving].mean()) / NS_PER_S if leaving.any() else 0.0
    return number, rate, stay

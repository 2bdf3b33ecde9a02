"""Do requests arrive faster than they leave? Then latency measures a backlog, and how long the
trace was, more than it does the way of serving.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.arrays import FloatArray, IntArray
from nexusbench.metrics.base import Scalar
from nexusbench.metrics.run_events import RunEvents

# With fewer requests a trend cannot be distinguished from chance.
FEWEST = 20
# The late ones must grow by this share of all that arrive, over the arrivals as a whole ...
GROWTH = 0.1
# ... and from each quarter to the next by this share of the mean step: a burst does not.
STEADY = 0.25
# Arrivals over fewer than so many unhindered stays show no trend. Then the mean request must stay
# for so many times what it needs unhindered.
SHORT, STRETCH = 10, 2.0
_QUARTERS, _POINTS, _LAST = 4, 400, 20
# Percentile of token gaps and of TTFT per prompt token that counts as unhindered.
_FAST = 5
_MOST_GAPS = 1 << 18


class OfferedRate(Scalar):
    """Arrivals per second, from the first to the last."""

    tag, unit, direction = "offered_rate", "req/s", "none"
    title = "requests offered per second"
    formula = "(|M| - 1) / (max(a_i) - min(a_i)), i in M"

    def value(self, run: RunEvents) -> float | None:
        """The rate; None where all arrive at once."""
        span = _span(run)
        return (int(run.measured.sum()) - 1) * NS_PER_S / span if span else None

    def reason(self, run: RunEvents) -> str:
        """All at once, or nothing."""
        return "all requests arrived at one moment" if run.measured.any() else "no request arrived"


class FinishedRate(Scalar):
    """Requests finished per second while requests arrived: the drain afterwards left out."""

    tag, unit, direction = "finished_rate", "req/s", "none"
    title = "requests finished per second while requests arrived"
    formula = "|{i in F : e_i <= max(a_i)}| / (max(a_i) - min(a_i)), i in M"

    def value(self, run: RunEvents) -> float | None:
        """The rate; None where all arrive at once."""
        span = _span(run)
        if not span:
            return None
        last = int(run.arrival[run.measured].max())
        return int((run.finished & (run.ended <= last)).sum()) * NS_PER_S / span

    def reason(self, run: RunEvents) -> str:
        """All at once, or nothing."""
        return OfferedRate().reason(run)


class LeftBehind(Scalar):
    """Requests that had not ended when the last one arrived."""

    tag, unit, direction = "left_behind", "requests", "none"
    title = "requests in the system at the last arrival"
    formula = "|{i in M : e_i > max(a_i), or no outcome}|"
    no_value = "no request arrived"

    def value(self, run: RunEvents) -> float | None:
        """A count; None where nothing arrived."""
        if not run.measured.any():
            return None
        last = int(run.arrival[run.measured].max())
        return int((run.measured & ((run.ended > last) | (run.outcome < 0))).sum())


class Overload(Scalar):
    """Whether requests arrive faster than they leave; the definition is in docs/metrics.md."""

    tag, unit, direction = "overload", "1: yes", "none"
    title = "requests arrive faster than they leave"
    formula = "1 if what is late grows by a tenth of what arrives, and in every quarter, else 0"
    no_value = f"fewer than {FEWEST} requests were served: no trend can be told"

    def value(self, run: RunEvents) -> float | None:
        """1 or 0; None for fewer requests than FEWEST."""
        served = _served(run)
        return None if served is None else int(_grows(served))


def _span(run: RunEvents) -> int:
    arrivals = run.arrival[run.measured]
    return int(arrivals.max() - arrivals.min()) if len(arrivals) else 0


class _Served(NamedTuple):
    """Requests that were served or still are; times in ns, ``end`` infinite without an end."""

    arrival: IntArray
    stay: FloatArray  # what it needs unhindered
    end: FloatArray
    tokens: IntArray  # of prompt and output
    log_end: int


def _served(run: RunEvents) -> _Served | None:
    """None for fewer than FEWEST. Rejected, failed and cancelled requests are left
    out: they neither wait nor are served.
    """
    served = run.finished | (run.measured & (run.outcome < 0))
    if int(served.sum()) < FEWEST or not run.answered.any():
        return None
    prompts, answered = run.requests["prompt_tokens"], run.answered
    output = np.where(run.finished, run.num_output_tokens, run.requests["output_tokens"])
    first = (run.first_token - run.arrival)[answered]
    per_token = float(np.percentile(first / np.maximum(prompts[answered], 1), _FAST))
    gaps = run.gaps  # read anew each time where there are very many
    gaps = gaps[:: len(gaps) // _MOST_GAPS + 1]
    gap = float(np.percentile(gaps, _FAST)) if len(gaps) else 0.0
    stay = per_token * prompts + gap * np.maximum(output - 1, 0)
    end = np.where(run.finished, run.ended, np.inf)
    log_end = int(max(run.ended.max(), run.last_token.max(), run.arrival.max()))
    tokens = prompts + output
    return _Served(run.arrival[served], stay[served], end[served], tokens[served], log_end)


def _grows(served: _Served) -> bool:
    arrival, stay, end, _, log_end = served
    span = int(arrival.max() - arrival.min())
    if span < SHORT * stay.mean():
        stayed = np.minimum(end, log_end) - arrival
        return bool(stayed.mean() >= STRETCH * max(stay.mean(), 1.0))
    # In requests, and in tokens: a policy that lets long prompts wait leaves few requests behind.
    return any(_late_grow(served, weight) for weight in (np.ones(len(arrival)), served.tokens))


def _late_grow(served: _Served, weight: FloatArray | IntArray) -> bool:
    """Late is what would have left by now unhindered, and has not: so neither requests that are on
    their way while all is well, nor the drain after the last arrival, count.
    """
    arrival, stay, end, _, log_end = served
    usual = float(np.median(stay))
    start = float(arrival.min()) + usual
    stop = min(float(arrival.max()) + usual, float(log_end))
    if stop <= start:
        return False
    width = (stop - start) / _POINTS
    times = start + width * (np.arange(_POINTS, dtype=np.float64) + 0.5)
    late = _until(arrival + stay, weight, times) - _until(end, weight, times)
    quarters = late.reshape(_QUARTERS, -1).mean(axis=1)
    steps = np.diff(quarters)
    growth = (quarters[-1] - quarters[0]) * _QUARTERS / (_QUARTERS - 1)
    enough = growth >= GROWTH * weight[arrival <= stop].sum()
    # A burst that was worked off by the last arrival is no overload.
    there = late[-_POINTS // _LAST :].mean() >= GROWTH * weight[arrival <= stop].sum()
    return bool(enough and there and steps.min() >= STEADY * steps.mean())


def _until(
    moments: FloatArray, weight: FloatArray | IntArray, times: npt.NDArray[np.floating[Any]]
) -> FloatArray:
    """The weight of the moments up to each time."""
    order = np.argsort(moments, kind="stable")
    total = np.concatenate(([0.0], np.cumsum(weight[order])))
    found: FloatArray = total[np.searchsorted(moments[order], times, side="right")]
    return found

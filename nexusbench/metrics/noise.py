"""The sampling noise of one run's statistics: the delete-a-block jackknife over blocks
of time (Quenouille 1949; Kuensch 1989 for dependent data).

Requests of one run wait for each other, so they are not independent samples; ten stretches of the
run nearly are. Two runs of one trace are compared by the difference of their statistics without the
same block: an effect of the trace on both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nexusbench.metrics.arrays import FloatArray
from nexusbench.metrics.latency import longest_prompts
from nexusbench.metrics.requests import met
from nexusbench.metrics.run_events import RunEvents

BLOCKS = 10
# Tag -> statistics by which a run may win or pay.
NOISY: Mapping[str, tuple[str, ...]] = {
    "ttft": ("mean", "p95", "p99"),
    "tbt": ("mean", "p99"),
    "e2e": ("mean", "p99"),
    "ttft_long_prompts": ("mean",),
}
# The same of rates, of which every run has one.
NOISY_RATES = ("output_throughput", "attainment")
# Of more values an even selection is looked at: it is about the size of the noise only.
_MOST = 1 << 18

LeftOut = dict[str, dict[str, list[float]]]


def blocks_of(count: int, size: int) -> npt.NDArray[np.int64]:
    """The block of each of ``size`` things in order of time; ``count`` blocks as even as can be."""
    found: npt.NDArray[np.int64] = np.arange(size) * count // max(1, size)
    return found


def left_out(run: RunEvents, tag: str, values: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Statistic -> its value without each of the blocks; none where there are fewer than two.

    ``values`` are the metric's, in the metric's own order.
    """
    found: dict[str, list[float]] = {name: [] for name in NOISY[tag]}
    if len(values) < 2:
        return found
    # The same requests make a block in every run of the trace, whichever of them were answered.
    asked = run.measured & longest_prompts(run) if tag == "ttft_long_prompts" else run.measured
    size = int(asked.sum())
    count = min(BLOCKS, size)
    if count < 2:
        return found
    step = len(values) // _MOST + 1
    values = values[::step]
    if tag == "tbt":  # in order of time; of very many, the request of each would take much memory
        blocks = blocks_of(count, len(values))
    else:
        answered = run.finished if tag == "e2e" else run.answered
        blocks = ((np.cumsum(asked) - 1) * count // size)[asked & answered][::step]
    for block in range(count):
        rest = values[blocks != block]
        if not len(rest):
            return {name: [] for name in found}
        for name, series in found.items():
            value = rest.mean(dtype=np.float64) if name == "mean" else _percentile(rest, name)
            series.append(float(value))
    return found


def _percentile(values: npt.NDArray[Any], name: str) -> float:
    return float(np.percentile(values, float(name[1:])))


def rates_left_out(run: RunEvents) -> LeftOut:
    """The same of NOISY_RATES: throughput by blocks of the window, attainment by requests."""
    count = min(BLOCKS, int(run.measured.sum()))
    found: LeftOut = {tag: {"value": []} for tag in NOISY_RATES}
    if count < 2:
        return found
    if run.makespan:
        made = _tokens_by_block(run, count)
        rest = (made.sum() - made) * 1e9 / (run.makespan * (1 - 1 / count))
        found["output_throughput"] = {"value": rest.tolist()}
    if run.facts.slo:
        kept = met(run)[run.measured]
        blocks = blocks_of(count, len(kept))
        sizes = np.bincount(blocks, minlength=count)
        hits = np.bincount(blocks, weights=kept, minlength=count)
        share = 100 * (hits.sum() - hits) / (sizes.sum() - sizes)
        found["attainment"] = {"value": share.tolist()}
    return found


def _tokens_by_block(run: RunEvents, count: int) -> FloatArray:
    """Tokens in each part of the window, each request's spread evenly between its first and last:
    that takes no look at every token.
    """
    some = run.answered
    first, last = run.first_token[some], run.last_token[some]
    number = run.num_output_tokens[some]
    start, end = run.window
    edges = np.linspace(start, end, count + 1)
    length = np.maximum(last - first, 1)
    until = np.array([(np.clip((edge - first) / length, 0, 1) * number).sum() for edge in edges])
    until[-1] = number.sum()
    made: FloatArray = np.diff(until)
    return made


def is_whole(stored: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether every statistic that has noise has its values without each block, if any."""
    names = {**NOISY, **dict.fromkeys(NOISY_RATES, ("value",))}
    return stored.keys() == names.keys() and all(
        values.keys() == set(names[tag]) for tag, values in stored.items()
    )


def half_interval(one: Sequence[float], other: Sequence[float] | None = None) -> float | None:
    """Half the 95 % interval of a statistic, or of the difference of two, from their values without
    each block; None where these do not go together.
    """
    from nexusbench.metrics.summary import t_quantile

    count = len(one)
    if count < 2 or (other is not None and len(other) != count):
        return None
    values = one if other is None else [a - b for a, b in zip(one, other, strict=True)]
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    return t_quantile(count - 1) * math.sqrt((count - 1) / count * spread)

"""What the page draws of one run: its events, cut down to some hundred kilobytes at most."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.metrics.arrays import IntArray
from nexusbench.metrics.base import Distribution, load_metrics
from nexusbench.metrics.occupancy import (
    StepFunction,
    at_edges,
    kv_over_time,
    queue_over_time,
    sms_at_work,
    split_over_time,
)
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.sampling import cdf, short, spread, with_largest

Numbers = list[float | int]
# A record of the launches in an excerpt: their kinds, as an index.
KINDS = ("prefill", "decode", "mixed")
_INTERVALS = 480  # of the charts over time
_POINTS = 1000  # of a scatter chart, of one run
_SLOWEST = 100  # of those, chosen because they are the largest
_BELIEFS = 500
_CHANGES = 400  # of the split; more are drawn as means of intervals


class Curve(msgspec.Struct):
    """Points of a line; ``of`` is how many values it stands for."""

    x: Numbers
    y: Numbers
    of: int


class OverTime(msgspec.Struct):
    """``t`` (s) are the beginnings of equally long intervals; the largest queue and KV use (%) in
    each, and the mean SMs at work per partition. ``split`` is what the first of two partitions was
    given, as a line of its own.
    """

    t: Numbers
    interval_s: float
    waiting: Numbers
    running: Numbers
    kv: Numbers
    sms: dict[str, Numbers]
    split: Curve | None


class Points(msgspec.Struct):
    """One dot per request: ``ids`` name them; ``of`` is how many there are in all."""

    ids: list[str]
    x: Numbers
    y: Numbers
    of: int


class Beliefs(msgspec.Struct):
    """Launches with a prediction: actual and predicted ms, and whether a neighbour slowed them."""

    actual: Numbers
    predicted: Numbers
    corunning: list[bool]
    of: int


class Launched(msgspec.Struct):
    """Launches from one moment on (ms since that moment), for the excerpt of the timeline."""

    partition: list[int]
    start: Numbers
    length: Numbers
    kind: list[int]
    decodes: list[int]
    tokens: list[int]
    sms: list[int]
    predicted: list[float | None]
    actual: Numbers


class Series(msgspec.Struct):
    """Everything drawn of one run; None where the run has nothing to draw."""

    ttft: Curve | None
    tbt: Curve | None
    over_time: OverTime | None
    ttft_by_prompt: Points | None
    e2e_by_output: Points | None
    beliefs: Beliefs | None
    launches: Launched | None
    partitions: tuple[str, ...]
    num_sms: int
    warmup_s: float


def series_of(run: RunEvents, moment: int, detail: float = 1.0) -> Series:
    """``moment`` (ns) is where the excerpt of launches begins; ``detail`` scales what is drawn."""
    facts = run.facts
    e2e = (run.ended - run.arrival) / NS_PER_S
    ttft = (run.first_token - run.arrival) / NS_PER_S
    output = run.num_output_tokens
    return Series(
        ttft=_curve(run, "ttft"),
        tbt=_curve(run, "tbt"),
        over_time=_over_time(run, max(60, int(_INTERVALS * detail))),
        ttft_by_prompt=_points(run, run.answered, run.requests["prompt_tokens"], ttft, detail),
        e2e_by_output=_points(run, run.finished, output, e2e, detail),
        beliefs=_beliefs(run, int(_BELIEFS * detail)),
        launches=_launches(run, moment),
        partitions=facts.partitions,
        num_sms=facts.num_sms,
        warmup_s=facts.warmup_ns / NS_PER_S,
    )


def busiest_moment(run: RunEvents) -> int:
    """When the most requests waited, for the first time; ns."""
    queue = queue_over_time(run)
    return int(queue.times[np.argmax(queue.waiting)]) if len(queue.times) else 0


def _curve(run: RunEvents, tag: str) -> Curve | None:
    metric = load_metrics()[tag]
    assert isinstance(metric, Distribution)
    values = metric.values(run)
    if not len(values):
        return None
    x, y = cdf(values)
    return Curve(short(x), short(y, 6), len(values))


def _over_time(run: RunEvents, intervals: int) -> OverTime | None:
    queue, launches = queue_over_time(run), run.all_launches
    ends = [times[-1] for times in (queue.times, np.sort(launches.end)) if len(times)]
    if not ends or max(ends) <= 0:
        return None
    edges = np.unique(np.linspace(0, int(max(ends)), intervals + 1).astype(np.int64))
    kv = at_edges(kv_over_time(run), edges) * (100 / max(1, run.facts.kv_blocks))
    used = np.unique(run.tables["submitted"]["partition"][launches.row]).tolist()
    return OverTime(
        t=short(edges[:-1] / NS_PER_S),
        interval_s=float(edges[1] - edges[0]) / NS_PER_S,
        waiting=short(at_edges(StepFunction(queue.times, queue.waiting), edges)),
        running=short(at_edges(StepFunction(queue.times, queue.running), edges)),
        kv=short(kv),
        sms={
            run.facts.partitions[code]: short(sms_at_work(run, code, edges)) for code in used
        },
        split=_split(run, edges),
    )  # fmt: skip


def _split(run: RunEvents, edges: IntArray) -> Curve | None:
    """SMs given to the first of two partitions; None where the device is undivided."""
    splits = np.array([row for row in run.facts.splits if len(row) == 2], dtype=np.int64)
    changes = split_over_time(run)
    known = (changes.values >= 0) & (changes.values < len(splits))
    if not len(splits) or len(splits) != len(run.facts.splits) or not known.any():
        return None
    steps = StepFunction(changes.times[known], splits[changes.values[known], 0])
    if len(steps.times) <= _CHANGES:
        # It holds until the end.
        times = np.append(steps.times, edges[-1]) / NS_PER_S
        return Curve(short(times), short(np.append(steps.values, steps.values[-1])), len(times) - 1)
    area = np.append(0, np.cumsum(steps.values[:-1] * np.diff(steps.times)))
    mean = np.diff(np.interp(edges, steps.times, area)) / np.diff(edges)
    return Curve(short(edges[:-1] / NS_PER_S), short(mean), len(steps.times))


def _points(
    run: RunEvents, which: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any], detail: float
) -> Points | None:
    rows = np.flatnonzero(which)
    if not len(rows):
        return None
    chosen = rows[with_largest(y[rows], int(_POINTS * detail), int(_SLOWEST * detail))]
    ids = [str(name) for name in run.requests["id"][chosen]]
    return Points(ids, short(x[chosen]), short(y[chosen]), len(rows))


def _beliefs(run: RunEvents, limit: int) -> Beliefs | None:
    launches = run.launches
    actual = launches.end - launches.start
    predicted = run.of_launches("predicted")
    known = np.flatnonzero((predicted >= 0) & (actual > 0))
    if not len(known):
        return None
    chosen = known[spread(len(known), limit)]
    slowed = (launches.solo[chosen] >= 0) & (launches.solo[chosen] < actual[chosen])
    return Beliefs(
        short(actual[chosen] / NS_PER_MS),
        short(predicted[chosen] / NS_PER_MS),
        slowed.tolist(),
        len(known),
    )


def _launches(run: RunEvents, moment: int, limit: int = 400) -> Launched | None:
    """The first ``limit`` launches that end after ``moment``."""
    launches = run.all_launches
    rows = np.flatnonzero(launches.end > moment)
    rows = rows[np.argsort(launches.start[rows], kind="stable")][:limit]
    if not len(rows):
        return None
    start, end, at = launches.start[rows], launches.end[rows], launches.row[rows]
    seen = {name: column[at] for name, column in run.tables["submitted"].items()}
    decodes, prefill = seen["decodes"], seen["prefill_tokens"]
    kind = np.where(prefill == 0, 1, np.where(decodes == 0, 0, 2))
    return Launched(
        partition=seen["partition"].tolist(),
        start=short((start - moment) / NS_PER_MS, 7),
        length=short((end - start) / NS_PER_MS),
        kind=kind.tolist(),
        decodes=decodes.tolist(),
        tokens=(decodes + prefill).tolist(),
        sms=seen["sms"].tolist(),
        predicted=[None if ns < 0 else ns / NS_PER_MS for ns in seen["predicted"].tolist()],
        actual=short((end - start) / NS_PER_MS),
    )

"""Section 3 of the Nexus paper (arXiv 2507.06608) on a device of ours: its numbers beside ours.

Two questions, and neither answers the other. Is the paper's number found (``agrees``)? And
could another number have been found? What a simulated GPU says may have been put in, so every
statement is tried again on the same GPU with the constants that it might rest on made neutral, one
at a time: ours is "found" if it stays, and "follows" from a constant if it changes by more than
half.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.devices.base import Device, DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.experiments.neutral import neutral_gpu
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling.curves import LatencyCurve, step_time
from nexusbench.profiling.desk import BatchDesk
from nexusbench.profiling.measure import Measurer, SamplingRule
from nexusbench.profiling.positions import legal_sms
from nexusbench.profiling.profile import Subject
from nexusbench.profiling.sweep import seed_of

Unit = Literal["s", "%", "x", "count"]
RATE, REQUESTS = 2.5, 100  # of the replay; the paper's rate (section 3)
CONTEXT = 6000  # tokens: a prompt of Long Data Collections, whose mean is 5,905
# 16 decodes after 6,000 tokens take about the paper's 15 ms on the simulated L20; its own batch is
# not printed. With four, the dense layers decide.
DECODES, FEW_DECODES = 16, 4
_SAMPLING = SamplingRule(10, 40, 0.004, 20.0)
# How far beyond the paper's number, or on the wrong side of its bound, ours may be (share of it).
AGREES, IN_PART = 0.2, 0.5
_CURVES = ("bandwidth_curve flat", "bandwidth_curve straight", "dense_wave_share")
_NEIGHBOURS = ("attention_interference", "dense_interference", "bandwidth_curve straight")


class Statement(msgspec.Struct, frozen=True):
    """One statement. ``without`` is ours with ``constant`` made neutral, the one that changes it
    most; None where none was tried.

    ``verdict`` is what ours is: ``found``, ``follows``, ``measured`` (no simulator), or why there
    is none. ``agrees`` with the paper: ``yes``, ``in part``, ``no``, or empty where there is no
    number.
    """

    statement: str
    paper: str
    unit: Unit
    ours: float | None
    verdict: str
    constant: str = ""
    without: float | None = None

    @property
    def agrees(self) -> str:
        """Within AGREES of the paper's number or bound, within IN_PART, or beyond."""
        if self.ours is None:
            return ""
        off = distance(self.paper, self.ours) - 1e-9
        return "yes" if off <= AGREES else "in part" if off <= IN_PART else "no"


def distance(paper: str, ours: float) -> float:
    """How far ``ours`` is from the nearest number of ``paper``, as a share of that; 0 on the right
    side of a bound (``over``, ``under``, ``up to``).
    """
    words = paper.split()
    numbers = [float(word) for word in words if word[0].isdigit()]
    if words[0] == "over":
        return max(0.0, 1 - ours / numbers[0])
    if words[0] in ("under", "up"):
        return max(0.0, ours / numbers[0] - 1)
    return min(abs(ours / number - 1) for number in numbers)


class Bench:
    """Measurements on one device, each made once."""

    def __init__(self, subject: Subject, seed: int = 0) -> None:
        self.subject, self._seed = subject, seed
        self._measurer = Measurer(BatchDesk(subject.device, subject.pool()), _SAMPLING)
        self._points: dict[str, Point] = {}
        self.largest = subject.limits.max_num_batched_tokens

    @property
    def num_sms(self) -> int:
        """Of the device."""
        return self.subject.device.spec.num_sms

    def point(
        self, shape: BatchShape, sms: int, neighbour: BatchShape | None = None, other_sms: int = 0
    ) -> Point:
        """That batch on so many SMs, alone or beside a neighbour."""
        both = shape.chunks and shape.num_decodes
        kind = "mixed" if both else "prefill" if shape.chunks else "decode"
        if neighbour is not None:
            kind = "pair"
        setting = PointSetting(kind, shape, sms, neighbour, other_sms)  # type: ignore[arg-type]
        if setting.key not in self._points:
            seed = seed_of(self._seed, setting)
            self._points[setting.key] = self._measurer.measure(setting, seed)
        return self._points[setting.key]

    def curve(self, shape: BatchShape) -> LatencyCurve:
        """Latency on every legal SM count from a tenth of them on."""
        phase = "prefill" if shape.chunks else "decode"
        legal = [n for n in legal_sms(self.subject.device.spec, phase) if n >= 0.1 * self.num_sms]
        made = LatencyCurve.of([self.point(shape, sms) for sms in legal], step_time)
        assert made is not None, "a GPU has more than three legal SM counts"
        return made

    def saved(self, shape: BatchShape, percent: int) -> float:
        """Per cent of latency that the ten per cent of SMs after ``percent`` save."""
        curve, share = self.curve(shape), self.num_sms / 100
        before, after = curve.at(percent * share), curve.at((percent + 10) * share)
        assert before is not None
        assert after is not None
        return 100 * (1 - after / before)

    def even_split(self) -> tuple[int, int]:
        """The most even disjoint split: SMs of prefill and decode."""
        splits = [split for split in self.subject.device.spec.splits if not split.overlapping]
        split = min(splits, key=lambda split: abs(split.sms[0] - split.sms[1]))
        return split.of("prefill"), split.of("decode")


def prompt(bench: Bench, context: int) -> BatchShape:
    """The largest chunk, after so many tokens."""
    return BatchShape(0, 0, ((bench.largest, context),))


def decodes(count: int) -> BatchShape:
    """That many decodes of Long Data Collections."""
    return BatchShape(count, count * CONTEXT)


def slower_by_context(bench: Bench) -> float:
    """Per cent by which a decode step grows beside a chunk after 10,000 instead of 2,000 tokens."""
    mine, theirs = bench.even_split()[1], bench.even_split()[0]
    near, far = (
        bench.point(decodes(DECODES), mine, prompt(bench, context), theirs).ns
        for context in (2000, 10_000)
    )
    return 100 * (far / near - 1)


def dense_inflation(bench: Bench) -> float | None:
    """Dense layers of a full mixed batch over those of its decodes alone; None if not reported."""
    alone = decodes(DECODES)
    mixed = BatchShape(
        alone.num_decodes, alone.decode_context, ((bench.largest - DECODES, CONTEXT),)
    )
    times = [bench.point(s, bench.num_sms).operators_ns.get("dense") for s in (mixed, alone)]
    if times[0] is None or times[1] is None:
        return None
    return times[0] / times[1]


# (statement, paper, measure, unit, constants it might rest on)
_Statement = tuple[str, str, Callable[[Bench], float | None], Unit, tuple[str, ...]]


def _statements() -> list[_Statement]:
    def save(shape: Callable[[Bench], BatchShape], percent: int) -> Callable[[Bench], float]:
        return lambda bench: bench.saved(shape(bench), percent)

    def chunk(bench: Bench) -> BatchShape:
        return prompt(bench, CONTEXT)

    def many(bench: Bench) -> BatchShape:
        return decodes(DECODES)

    def few(bench: Bench) -> BatchShape:
        return decodes(FEW_DECODES)

    def most(shape: Callable[[Bench], BatchShape]) -> Callable[[Bench], float]:
        return lambda bench: max(bench.saved(shape(bench), p) for p in (50, 60, 70, 80, 90))

    return [
        ("linear kernels, mixed over decode only", "up to 10", dense_inflation, "x", ()),
        ("prefill: 30 to 40 % of SMs saves", "over 25", save(chunk, 30), "%", _CURVES),
        ("prefill: 70 to 80 % saves", "10", save(chunk, 70), "%", _CURVES),
        (f"{FEW_DECODES} decodes: 30 to 40 % saves", "10", save(few, 30), "%", _CURVES),
        (f"{FEW_DECODES} decodes: best 10 % beyond 50", "under 3", most(few), "%", _CURVES),
        (f"{DECODES} decodes: 30 to 40 % saves", "10", save(many, 30), "%", _CURVES),
        (f"{DECODES} decodes: best 10 % beyond 50", "under 3", most(many), "%", _CURVES),
        ("decode slower, prefill 2,000 -> 10,000", "15 or 36", slower_by_context, "%", _NEIGHBOURS),
    ]


def motivation(subject: Subject, config: RunConfig | None) -> list[Statement]:
    """Every statement of section 3, in its order. ``config`` is a replay for the table of batch
    types, or None to leave that out.
    """
    bench = Bench(subject)
    rows = _batch_types(config, simulated=subject.device.spec.simulated)
    ablated = _Ablated(subject)
    for statement, paper, measure, unit, constants in _statements():
        ours = measure(bench)
        if ours is None:
            rows.append(Statement(statement, paper, unit, None, "not reported here"))
            continue
        if not subject.device.spec.simulated:
            rows.append(Statement(statement, paper, unit, ours, "measured"))
            continue
        rows.append(_judged(statement, paper, unit, ours, measure, constants, ablated))
    rows.append(Statement("KQV flattens, FFN does not, at", "60", "%", None, "not told apart"))
    return rows


def _judged(
    statement: str,
    paper: str,
    unit: Unit,
    ours: float,
    measure: Callable[[Bench], float | None],
    constants: tuple[str, ...],
    ablated: _Ablated,
) -> Statement:
    """Which constant it rests on most, and whether that is more than half of it."""
    worst: tuple[float, str, float | None] = (0.0, "", None)
    for constant in constants:
        without = measure(ablated.bench(constant))
        assert without is not None
        worst = max(worst, (abs(ours - without), constant, without))
    lost, constant, without = worst
    verdict = "follows" if lost > 0.5 * abs(ours) else "found"
    return Statement(statement, paper, unit, ours, verdict, constant, without)


class _Ablated:
    """The same simulated device with one constant made neutral."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._benches: dict[str, Bench] = {}

    def bench(self, constant: str) -> Bench:
        """Opened once for each constant."""
        if constant not in self._benches:
            device = _without(self._subject.device, constant, self._subject)
            self._benches[constant] = Bench(msgspec.structs.replace(self._subject, device=device))
        return self._benches[constant]


def _without(device: Device, constant: str, subject: Subject) -> Device:
    options = DeviceOptions(
        subject.limits.max_num_seqs, subject.limits.max_num_batched_tokens,
        tensor_parallel=device.spec.tensor_parallel, profiling=True,
    )  # fmt: skip
    return Sim(neutral_gpu(device.gpu, constant), subject.model, options)


def replay_config(subject: Subject, trace: Path, device: str) -> RunConfig:
    """Chunked prefill as in vLLM, on the paper's trace and rate (Fig. 4a)."""
    return RunConfig(
        trace=str(trace), device=device, model=subject.model.name, scheduler="vllm",
        request_rate=RATE, limit=REQUESTS, tensor_parallel_size=subject.device.spec.tensor_parallel,
    )  # fmt: skip


def _batch_types(config: RunConfig | None, *, simulated: bool) -> list[Statement]:
    """Fig. 4a: mean iteration by what it computes, and shares of the time."""
    names: tuple[tuple[str, str, Unit], ...] = (
        ("prefill-only iterations: mean", "0.132", "s"),
        ("prefill-only iterations: number", "2", "count"),
        ("decode-only iterations: mean", "0.015", "s"),
        ("decode-only iterations: share of time", "5.8", "%"),
        ("mixed iterations: mean", "0.251", "s"), ("mixed iterations: share of time", "94.2", "%"),
        ("mixed over decode-only: TBT", "over 8", "x"),
    )  # fmt: skip
    values: list[float | None] = [None] * len(names)
    missing = "no trace (--trace)"
    if config is not None:
        values, missing = _replayed(config), "did not occur"
    made = "found" if simulated else "measured"
    return [
        Statement(name, paper, unit, value, missing if value is None else made)
        for (name, paper, unit), value in zip(names, values, strict=True)
    ]


def _replayed(config: RunConfig) -> list[float | None]:
    """The values of Fig. 4a from a replay."""
    from nexusbench.serving.runner import run

    tables = run(config).events.tables
    submitted, done = tables["submitted"], tables["step_done"]
    ends = dict(zip(done["step"].tolist(), done["time"].tolist(), strict=True))
    starts = zip(submitted["step"].tolist(), submitted["time"].tolist(), strict=True)
    time = np.array([ends.get(step, start) - start for step, start in starts], dtype=np.float64)
    chunks, rows = submitted["prefill_tokens"] > 0, submitted["decodes"] > 0
    prefill, decode, mixed = time[chunks & ~rows], time[rows & ~chunks], time[chunks & rows]

    def mean(values: Any) -> float | None:
        return float(values.mean()) / 1e9 if len(values) else None

    total = float(time.sum())
    means = mean(prefill), mean(decode), mean(mixed)
    ratio = means[2] / means[1] if means[1] and means[2] else None
    return [
        means[0], float(len(prefill)), means[1], 100 * float(decode.sum()) / total, means[2],
        100 * float(mixed.sum()) / total, ratio,
    ]  # fmt: skip

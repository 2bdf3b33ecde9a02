"""What the points say without any model: saturation, benefit, contention, efficiency, splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import Target
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.stages import Stages
from nexusbench.profiling.curves import (
    LatencyCurve,
    lines_of,
    operator_time,
    rounded,
    step_time,
)
from nexusbench.profiling.grammar import format_batch
from nexusbench.profiling.sharing import SharingFacts, derive_sharing

ENERGY = "nvml.energy"  # joules per step, where a counter gave them
_CLASSES = ("step", "dense", "attention")


class Saturation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fewest SMs within 5 and 10 % of the latency on all, of one operator class.

    ``batch`` is the reference batch, ``lines`` how many batches were swept, ``least`` to ``most``
    where they are within 5 %.
    """

    phase: str
    operators: str
    batch: str
    all_ns: float
    within_5: int
    within_10: int
    lines: int
    least: int
    typical: int
    most: int


class Benefit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latency of the reference batch at a share of the SMs, and what the last tenth saved."""

    phase: str
    batch: str
    percent: int
    ns: float | None
    saved: float | None


class Bandwidth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that decode attention must read over the time it took; share of the published peak."""

    sms: int
    gb_per_s: float
    share: float


class Efficiency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a batch on all SMs: model FLOP and bandwidth utilisation, joules per token.

    FLOPs and bytes are the model's (core/work.py), so neither can exceed 1 by waste.
    """

    phase: str
    batch: str
    ns: float
    tokens: int
    mfu: float
    mbu: float
    joules_per_token: float | None


class Contention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many times longer ``batch`` takes beside ``neighbour`` than alone on the same SMs.

    ``attention_share`` is the share of the neighbour's own time in attention, where it is known.
    """

    phase: str
    batch: str
    sms: int
    neighbour: str
    neighbour_sms: int
    slowdown: float
    ns: float
    attention_share: float | None = None


class SplitChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a split gives two batches that run beside each other; ``front``: no split is better."""

    prefill: str
    decode: str
    prefill_sms: int
    decode_sms: int
    prefill_tokens_per_s: float
    decode_step_ms: float
    front: bool


class ProfileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them; ``reasons`` say why something is missing."""

    saturation: tuple[Saturation, ...] = ()
    benefit: tuple[Benefit, ...] = ()
    bandwidth: tuple[Bandwidth, ...] = ()
    bandwidth_of: str = ""
    efficiency: tuple[Efficiency, ...] = ()
    contention: tuple[Contention, ...] = ()
    splits: tuple[SplitChoice, ...] = ()
    sharing: SharingFacts = SharingFacts()
    num_warned: int = 0
    warned: dict[str, int] = {}  # kind of warning -> points
    num_outliers: int = 0
    num_discarded: int = 0
    reasons: dict[str, str] = {}


def derive_facts(
    points: Sequence[Point], target: Target, splits: Sequence[tuple[int, int]]
) -> ProfileFacts:
    """``splits`` are the device's legal ones as (prefill SMs, decode SMs)."""
    reasons: dict[str, str] = {}
    saturation, benefit = _saturation(points, target, splits, reasons)
    bandwidth, bandwidth_of = _bandwidth(points, target, reasons)
    contention = _contention(points)
    if not contention:
        reasons["contention"] = "no pairs were measured"
    return ProfileFacts(
        saturation=tuple(saturation),
        benefit=tuple(benefit),
        bandwidth=tuple(bandwidth),
        bandwidth_of=bandwidth_of,
        efficiency=tuple(_efficiency(points, target, reasons)),
        contention=tuple(contention),
        splits=tuple(_splits(points)),
        sharing=derive_sharing(points, target),
        num_warned=sum(bool(point.warnings) for point in points),
        warned=_warned(points),
        num_outliers=sum(len(point.outliers) for point in points),
        num_discarded=sum(point.discarded for point in points),
        reasons=reasons,
    )


def representative(splits: Sequence[SplitChoice]) -> list[SplitChoice]:
    """The splits of the pair of batches in the middle of those measured."""
    pairs = list(dict.fromkeys((row.prefill, row.decode) for row in splits))
    if not pairs:
        return []
    chosen = pairs[len(pairs) // 2]
    return [row for row in splits if (row.prefill, row.decode) == chosen]


def _warned(points: Sequence[Point]) -> dict[str, int]:
    """How many points carry each kind of warning, the most frequent first. A kind is a warning
    without its numbers: ``wide interval``, ``samples discarded``.
    """
    kinds = Counter(
        kind
        for point in points
        for kind in {text.partition(":")[0].lstrip("0123456789 ") for text in point.warnings}
    )
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def stored_facts(facts: dict[str, object]) -> ProfileFacts:
    """The facts of a profile. Raises msgspec.ValidationError if they are none."""
    return msgspec.convert(facts, ProfileFacts)


def _saturation(
    points: Sequence[Point],
    target: Target,
    splits: Sequence[tuple[int, int]],
    reasons: dict[str, str],
) -> tuple[list[Saturation], list[Benefit]]:
    found: list[Saturation] = []
    benefit: list[Benefit] = []
    total = target.gpu.num_sms
    for side, phase in enumerate(("prefill", "decode")):
        legal = sorted({split[side] for split in splits} | {total})
        lines = lines_of(points, phase)
        for operators in _CLASSES:
            value = step_time if operators == "step" else operator_time(operators)
            made = [(line, LatencyCurve.of(line, value)) for line in lines.values()]
            curves = [(line, c) for line, c in made if c is not None and c.sms[-1] == total]
            if not curves:
                reasons[f"saturation of {phase} {operators}"] = (
                    "the device does not report times by operator class"
                    if lines and operators != "step"
                    else "no batch was measured on shares of three sizes"
                )
                continue
            line, curve = curves[0]
            batch = format_batch(line[0].setting.shape)
            fives = sorted(c.saturation(0.05, legal) for _, c in curves)
            found.append(
                Saturation(
                    phase, operators, batch, curve.ns[-1], curve.saturation(0.05, legal),
                    curve.saturation(0.10, legal), len(curves), fives[0],
                    int(median(fives)), fives[-1],
                )
            )  # fmt: skip
            if operators == "step":
                benefit += [
                    Benefit(phase, batch, percent, rounded(ns), rounded(saved))
                    for percent, ns, saved in curve.savings(total)
                ]
    return found, benefit


def _bandwidth(
    points: Sequence[Point], target: Target, reasons: dict[str, str]
) -> tuple[list[Bandwidth], str]:
    """Along the line whose decode attention reads most; alone on each SM count."""
    stages = Stages(target.gpu, target.model, target.tensor_parallel)
    lines = [
        line
        for line in lines_of(points, "decode").values()
        if LatencyCurve.of(line, operator_time("attention")) is not None
    ]
    if not lines:
        reasons["bandwidth"] = "the device does not report attention's time"
        return [], ""
    line = max(lines, key=lambda line: line[0].setting.shape.decode_context)
    shape = line[0].setting.shape
    size = stages.work(shape).decode_bytes
    rows = []
    for point in sorted(line, key=lambda p: p.setting.sms):
        rate = size / point.operators_ns["attention"]
        rows.append(
            Bandwidth(point.setting.sms, round(rate, 1), round(rate / stages.bytes_per_ns, 4))
        )
    return rows, format_batch(shape)


def _efficiency(
    points: Sequence[Point], target: Target, reasons: dict[str, str]
) -> list[Efficiency]:
    """Every batch measured alone on all SMs, by phase."""
    stages = Stages(target.gpu, target.model, target.tensor_parallel)
    rows = []
    for point in points:
        setting = point.setting
        if setting.neighbour is not None or setting.sms != target.gpu.num_sms:
            continue
        mfu, mbu = utilisation(stages, setting.shape, point.ns)
        joules = point.counters.get(ENERGY)
        tokens = setting.shape.num_tokens
        rows.append(
            Efficiency(
                setting.phase, format_batch(setting.shape, setting.contexts), point.ns, tokens,
                round(mfu, 4), round(mbu, 4), None if joules is None else rounded(joules / tokens),
            )
        )  # fmt: skip
    if not any(row.joules_per_token is not None for row in rows):
        reasons["joules per token"] = "no counter gave energy"
    order = ("prefill", "decode", "mixed")
    return sorted(rows, key=lambda row: order.index(row.phase))


def utilisation(stages: Stages, shape: BatchShape, ns: float) -> tuple[float, float]:
    """(MFU, MBU): the model's FLOPs and bytes of a step over what the peaks could do in ``ns``."""
    work = stages.work(shape)
    flops = sum(flops for flops, _ in work.dense) + work.chunk_flops
    size = sum(size for _, size in work.dense) + work.chunk_bytes + work.decode_bytes
    return (flops + work.decode_flops) / stages.flops_per_ns / ns, size / stages.bytes_per_ns / ns


def _contention(points: Sequence[Point]) -> list[Contention]:
    """One row for each side of each pair."""
    shares = {
        (p.setting.shape, p.setting.sms): p.operators_ns.get("attention", 0.0) / p.ns
        for p in points
        if p.setting.neighbour is None and p.operators_ns
    }
    rows = []
    for point in points:
        setting = point.setting
        if setting.kind != "pair" or setting.held_out or point.slowdown is None:
            continue
        assert setting.neighbour is not None
        share = shares.get((setting.neighbour, setting.neighbour_sms))
        rows.append(
            Contention(
                setting.phase, format_batch(setting.shape), setting.sms,
                format_batch(setting.neighbour), setting.neighbour_sms, round(point.slowdown, 4),
                point.ns, rounded(share, 3),
            )
        )  # fmt: skip
    return rows


def _splits(points: Sequence[Point]) -> list[SplitChoice]:
    """Both sides of each pair at each split, and which splits no other beats on both."""
    sides = {_pair_key(p.setting): p for p in points if p.setting.kind == "pair"}
    groups: dict[tuple[BatchShape, BatchShape], list[tuple[int, int, float, float]]] = {}
    for point in points:
        setting = point.setting
        if setting.kind != "pair" or setting.held_out or setting.phase != "prefill":
            continue
        assert setting.neighbour is not None
        mirrored = (setting.neighbour, setting.neighbour_sms, setting.shape, setting.sms)
        other = sides.get(mirrored)
        if other is None:
            continue
        rate = setting.shape.num_tokens / point.ns * 1e9
        groups.setdefault((setting.shape, setting.neighbour), []).append(
            (setting.sms, setting.neighbour_sms, rate, other.ns / 1e6)
        )
    rows = []
    for (prefill, decode), choices in groups.items():
        for mine, theirs, rate, step in sorted(choices):
            beaten = any(
                r >= rate and s <= step and (r > rate or s < step) for _, _, r, s in choices
            )
            rows.append(
                SplitChoice(
                    format_batch(prefill), format_batch(decode), mine, theirs, round(rate, 1),
                    round(step, 4), not beaten,
                )
            )  # fmt: skip
    return rows


def _pair_key(setting: PointSetting) -> tuple[BatchShape, int, BatchShape | None, int]:
    return setting.shape, setting.sms, setting.neighbour, setting.neighbour_sms

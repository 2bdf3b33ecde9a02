"""Readers of tables in which two sequences of kernels run beside each other."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.experiments.fidelity.partitions.cells import (
    HINT,
    MOST_BATCH,
    MOST_SIZE,
    MOST_TOKENS,
    MeasuredRow,
)
from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.experiments.fidelity.partitions.points import (
    BESIDE,
    SLOWDOWN,
    WORK_RATE,
    PartitionPoint,
    PartitionPoints,
)
from nexusbench.experiments.fidelity.partitions.reading import ZAMBA_HEADS, TableReading
from nexusbench.experiments.fidelity.partitions.simulated import (
    SimulatedGpu,
    of_attention,
)
from nexusbench.physics.sharing import LaunchLoad

Load = Callable[[int], LaunchLoad]  # of a side, on some SMs
SIDES = ("prefill", "decode")
SHARED_MODES, SPLIT_MODES = ("two_stream", "streams"), ("green", "split")
ONE_SHOT = (
    "which of two single kernels is slowed depends on which is launched first: their slow-downs on "
    "the same SMs are not scored, their work rate is"
)


UNTOLD = "{} rows are taken for one layer's attention: no column 'of' says step, none says a model"


class CorunRow(msgspec.Struct, frozen=True):
    """Two sequences side by side. ``alone`` and ``ends`` are ms (alone on all SMs; until each is
    done when launched together), ``both`` ms until both are; None where each side goes on until the
    other is done, so that ``ends`` are those of one step of it.
    """

    kind: str  # streams (both on the same SMs) or split (disjoint ones)
    shape: str
    sides: tuple[str, str]
    sms: tuple[int, int]
    alone: tuple[float, float]
    ends: tuple[float, float]
    both: float | None
    line: int


def points_of(row: CorunRow, gpu: SimulatedGpu, loads: tuple[Load, Load]) -> list[PartitionPoint]:
    """Work rate and slow-downs of one pair on ``gpu``, whose SMs are all that the pair may have."""
    most = gpu.gpu.num_sms
    whole = loads[0](most), loads[1](most)
    made = gpu.corun(row.alone, whole, (loads[0](row.sms[0]), loads[1](row.sms[1])))
    together = row.alone[0] + row.alone[1]
    measured = row.ends[0] / row.alone[0], row.ends[1] / row.alone[1]
    if row.both is None:
        simulated = 1.0 / made.speeds[0], 1.0 / made.speeds[1]
        rates = 1.0 / measured[0] + 1.0 / measured[1], made.speeds[0] + made.speeds[1]
    else:
        simulated = made.ends[0] / row.alone[0], made.ends[1] / row.alone[1]
        rates = together / row.both, together / max(made.ends)
    points = [_point(row, f"work rate {row.kind}", WORK_RATE, *rates)]
    for i, side in enumerate(row.sides):
        name = f"slow-down {row.kind} {side}"
        points.append(_point(row, name, SLOWDOWN, measured[i], simulated[i]))
    return points


def _point(
    row: CorunRow, operator: str, unit: str, measured: float, simulated: float
) -> PartitionPoint:
    return PartitionPoint(
        operator, (), row.shape, row.sms, unit, measured, simulated, row.line,
        may_be_fitted(row.shape),
    )  # fmt: skip


# -- a prefill beside a decode ---------------------------------------------------------------------


def coruns(reading: TableReading) -> PartitionPoints:
    """``decode_batch,context,prefill_tokens,mode,prefill_sms,decode_sms,solo_prefill_ms,
    solo_decode_ms,prefill_ms,decode_ms``: a prefill beside decodes, on the same SMs or split.

    ``of``: ``attention`` (a layer's kernels) or ``step`` (a whole model; the default where
    ``model`` is told). Steps without ``both_ms`` go on on either side until the other is done.
    """
    found: list[tuple[MeasuredRow, CorunRow]] = []
    untold = 0  # rows that do not say what runs
    for row in reading.rows():
        found.append((row, _corun_row(reading, row)))
        untold += not row.has("of") and not row.has("model")
    used = [sum(c.sms) if c.kind == "split" else max(c.sms) for _, c in found]
    most = max(used)
    if most > reading.gpu.gpu.num_sms:
        line = found[used.index(most)][0]
        problem = f"the row uses {most} SMs; {reading.gpu.gpu.name} has {reading.gpu.gpu.num_sms}"
        raise line.error("decode_sms", problem, "Give the GPU that was measured")
    gpu = reading.gpu.cut(most)
    made = PartitionPoints(notes=_on_part(most, reading))
    if untold:
        made.notes.append(UNTOLD.format(untold))
    for row, corun in found:
        points = points_of(corun, gpu, _phase_loads(reading, gpu, row))
        if corun.kind == "streams" and _of(row) == "attention":
            del points[1:]
            if ONE_SHOT not in made.notes:
                made.notes.append(ONE_SHOT)
        made.points += points
    return made


def _of(row: MeasuredRow) -> str:
    """What runs: ``attention`` or ``step``."""
    of = row.text("of", "step" if row.has("model") else "attention")
    if of not in ("attention", "step"):
        raise row.error("of", f"is '{of:.40}'", "Write attention or step")
    return of


def _on_part(most: int, reading: TableReading) -> list[str]:
    total = reading.gpu.gpu.num_sms
    if most == total:
        return []
    return [f"simulated on {most} of the {total} SMs: the table uses no more"]


def _corun_row(reading: TableReading, row: MeasuredRow) -> CorunRow:
    mode, gpu = row.text("mode").lower(), reading.gpu.gpu
    if mode not in (*SHARED_MODES, *SPLIT_MODES):
        known = ", ".join((*SHARED_MODES, *SPLIT_MODES))
        raise row.error("mode", f"is '{mode:.40}'", f"Known: {known}")
    kind, of = "split" if mode in SPLIT_MODES else "streams", _of(row)
    batch, context = row.count("decode_batch", MOST_BATCH), row.count("context", MOST_TOKENS)
    tokens = row.count("prefill_tokens", MOST_TOKENS)
    ends = row.positive("prefill_ms"), row.positive("decode_ms")
    both = None if of == "step" else max(ends)
    sms = (gpu.num_sms, gpu.num_sms)
    if kind == "split" or row.has("prefill_sms") or row.has("decode_sms"):
        sms = row.sms("prefill_sms", gpu), row.sms("decode_sms", gpu)
    return CorunRow(
        kind,
        f"corun {of} batch={batch} context={context} tokens={tokens}",
        ("prefill", "decode"),
        sms,
        (row.positive("solo_prefill_ms"), row.positive("solo_decode_ms")),
        ends,
        row.positive("both_ms") if row.has("both_ms") else both,
        row.line,
    )


def _phase_loads(reading: TableReading, gpu: SimulatedGpu, row: MeasuredRow) -> tuple[Load, Load]:
    """The loads of the prefill and of the decodes of a row."""
    batch, context = row.count("decode_batch", MOST_BATCH), row.count("context", MOST_TOKENS)
    tokens = row.count("prefill_tokens", MOST_TOKENS)
    if _of(row) == "step":
        if reading.model is None:
            row.text("model")  # raises InputError where it is missing
        model, gpus = reading.step_model(row)
        prefill, decode = BatchShape(0, 0, ((tokens, 0),)), BatchShape(batch, batch * context)
        return (
            lambda sms: gpu.step(model, gpus, prefill, sms),
            lambda sms: gpu.step(model, gpus, decode, sms),
        )
    layout = reading.layout(row, ZAMBA_HEADS)
    return (
        lambda sms: of_attention(sms, gpu.prefill_attention(layout, tokens, sms)),
        lambda sms: of_attention(sms, gpu.decode_attention(layout, batch, context, sms)),
    )


# -- streaming kernels beside computing ones -------------------------------------------------------


def streams_or_green(reading: TableReading) -> PartitionPoints:
    """``gpu,what,single_stream_ms,two_streams_ms,green_contexts_ms``: computing kernels and
    streaming ones, one after the other, in two streams, in two green contexts.

    Neither their own times nor the split is told: docs/fidelity.md says what is assumed.
    """
    gpu, made = reading.gpu, PartitionPoints()
    for row in reading.rows():
        what, total = row.text("what"), row.positive("single_stream_ms")
        if not ("compute" in what and "memory" in what):
            raise row.error("what", f"is '{what:.60}'", "Only compute beside memory kernels")
        alone = (1.0 - MEMORY_SHARE) * total, MEMORY_SHARE * total
        loads, all_sms = _kernels(gpu, alone[0] / _KERNELS, alone[1] / _KERNELS), gpu.gpu.num_sms
        for kind, column, sms in (
            ("streams", "two_streams_ms", (all_sms, all_sms)),
            ("split", "green_contexts_ms", best_split(gpu, alone, loads)),
        ):
            both = row.positive(column)
            corun = CorunRow(
                kind, what[:80], ("compute", "memory"), sms, alone, (both, both), both, row.line
            )
            made.points.append(points_of(corun, gpu, loads)[0])
    made.notes.append(
        f"assumed: the memory kernels take {MEMORY_SHARE:.0%} of the single stream, and the split "
        "is the best one as simulated; the source says neither"
    )
    return made


# 100 times the 11.14 ms of the same source's memory kernel on all SMs of its RTX 5070 Ti are 1,114
# of the 1,860 ms of the single stream.
MEMORY_SHARE = 0.6
_KERNELS = 100  # of each side


def _kernels(gpu: SimulatedGpu, computing: float, streaming: float) -> tuple[Load, Load]:
    """The loads of kernels that take so many ms on all SMs."""
    return (
        lambda sms: gpu.computing(sms, computing * 1e6),
        lambda sms: gpu.streaming(sms, streaming * 1e6),
    )


def best_split(
    gpu: SimulatedGpu, alone: tuple[float, float], loads: tuple[Load, Load]
) -> tuple[int, int]:
    """The disjoint split on which both sides are done first, as simulated."""
    most = gpu.gpu.num_sms
    whole = loads[0](most), loads[1](most)
    best, found = None, (most, most)
    for first in range(gpu.gpu.sm_multiple, most, gpu.gpu.sm_multiple):
        sms = first, most - first
        ends = gpu.corun(alone, whole, (loads[0](sms[0]), loads[1](sms[1]))).ends
        if best is None or max(ends) < best:
            best, found = max(ends), sms
    return found


def gemv_beside_gemm(reading: TableReading) -> PartitionPoints:
    """``sms_shared,gemv_n,gemm_n,gemv_alone_ms,...``: a streaming kernel beside a computing one, on
    the same SMs, launched together once.
    """
    made, cuts = PartitionPoints(notes=[ONE_SHOT]), dict[int, SimulatedGpu]()
    for row in reading.rows():
        sms = row.sms("sms_shared", reading.gpu.gpu)
        if sms not in cuts:
            cuts[sms] = reading.gpu.cut(sms)
        gpu = cuts[sms]
        sizes = row.count("gemv_n", MOST_SIZE), row.count("gemm_n", MOST_SIZE)
        ends = row.positive("gemv_beside_ms"), row.positive("gemm_beside_ms")
        corun = CorunRow(
            "streams", f"gemv n={sizes[0]} gemm n={sizes[1]}", ("memory", "compute"), (sms, sms),
            (row.positive("gemv_alone_ms"), row.positive("gemm_alone_ms")), ends, max(ends),
            row.line,
        )  # fmt: skip
        compute, memory = _kernels(gpu, corun.alone[1], corun.alone[0])
        made.points.append(points_of(corun, gpu, (memory, compute))[0])
    return made


def copies(reading: TableReading) -> PartitionPoints:
    """``blocks_each,alone_Nsms_gb_s,beside_other_Nsms_gb_s``: two equal copies, each on N SMs of
    its own, against one of them alone there.
    """
    alone, beside = reading.the_only(r"alone_\d{1,6}sms_gb_s", r"beside_other_\d{1,6}sms_gb_s")
    each = int(alone.removeprefix("alone_").removesuffix("sms_gb_s"))
    if not each or beside != f"beside_other_{each}sms_gb_s":
        problem = f"is not of the same SMs as {alone}"
        raise InputError(problem, file=reading.path, line=1, field=beside, hint=HINT)
    gpu, made = reading.gpu, PartitionPoints()
    for row in reading.rows():
        if 2 * each > gpu.gpu.num_sms:
            problem = f"two sides of {each} SMs; {gpu.gpu.name} has {gpu.gpu.num_sms}"
            raise row.error(alone, problem, "Give the GPU that was measured")
        blocks = row.count("blocks_each", MOST_SIZE)
        shape = f"copy beside copy, {blocks} blocks each"
        load = gpu.streaming(each)
        made.points.append(
            PartitionPoint(
                "neighbour split stream", (), shape, (each, each), BESIDE,
                row.positive(alone) / row.positive(beside),
                gpu.slowdown(load, load), row.line, may_be_fitted(shape),
            )
        )  # fmt: skip
    return made

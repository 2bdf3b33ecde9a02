"""Rows of ``partitions.csv`` (``nexusbench profile`` writes it) beside the simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import ModelSpec
from nexusbench.experiments.fidelity.partitions.alone import every_second
from nexusbench.experiments.fidelity.partitions.cells import (
    MOST_BATCH,
    MOST_TOKENS,
    MeasuredRow,
)
from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.experiments.fidelity.partitions.points import (
    BESIDE,
    WORK_RATE,
    PartitionPoint,
    PartitionPoints,
    TimeOnSms,
    over_all_sms,
)
from nexusbench.experiments.fidelity.partitions.reading import TableReading, gpus_of
from nexusbench.experiments.fidelity.partitions.simulated import SimulatedGpu
from nexusbench.profiles.profile import PROFILE_FILE, load_profile
from nexusbench.profiles.sharing import (
    ATTENTION,
    DECODE,
    OPERATORS,
    PREFILL,
    SPLIT,
    STREAMS,
    WEIGHTS,
    EqualBatch,
    SharingRow,
)

SIMULATED_NOTE = "the profile is of a simulated GPU: nothing here was measured"
MOST_PROMPTS = 1024  # of one step; each is simulated
_NS_PER_MS = 1e6


class TableOfSteps(msgspec.Struct, frozen=True):
    """Rows with their lines, and the model that they are of over ``gpus`` GPUs."""

    rows: tuple[tuple[int, SharingRow], ...]
    model: ModelSpec
    gpus: int


def named(shape: BatchShape, contexts: tuple[int, ...] = ()) -> str:
    """A batch in words that are equal only for equal batches."""
    chunks = "+".join(f"{count}@{before}" for count, before in shape.chunks)
    parts = [f"chunks {chunks}"] if chunks else []
    if shape.num_decodes:
        parts.append(f"{shape.num_decodes} decodes over {shape.decode_context}")
    if contexts:
        parts.append(f"lengths {sorted(contexts)}")
    if shape.layers is not None:
        parts.append(f"layers {shape.layers}")
    if shape.repeat > 1:
        parts.append(f"x{shape.repeat}")
    return ", ".join(parts)


def pair_point(
    operator: str,
    shapes: tuple[BatchShape, BatchShape],
    sms: tuple[int, int],
    unit: str,
    values: tuple[float, float],
    line: int,
) -> PartitionPoint:
    """A number of a pair, measured and simulated; its half hangs on both batches alike."""
    text = " beside ".join(sorted(map(named, shapes)))
    return PartitionPoint(operator, (), text, sms, unit, *values, line, may_be_fitted(text))


# -- the table -------------------------------------------------------------------------------------


def shared(reading: TableReading) -> PartitionPoints:
    """``device,simulated,model,operator,batch,context,tokens,sms,ms,beside_...``: steps over SMs
    and two batches at once, of one model on one device.
    """
    rows: list[tuple[int, SharingRow]] = []
    identity: tuple[str, bool, str, int] | None = None
    for row in reading.rows():
        found = _identity(row)
        if identity is None:
            identity, model = found, _model(reading, row)
            gpus_of(row, model)
        elif found != identity:
            problem = "rows are of two devices, models or numbers of GPUs"
            raise row.error("device", problem, "Give each a table of its own")
        rows.append((row.line, _row(row, reading)))
    assert identity is not None
    device, simulated, _, gpus = identity
    made = points_of(TableOfSteps(tuple(rows), model, gpus), reading.gpu)
    made.measured_on = f"{device}, simulated" if simulated else device
    if simulated:
        made.notes.append(SIMULATED_NOTE)
    return made


def _identity(row: MeasuredRow) -> tuple[str, bool, str, int]:
    device = row.text("device")
    if device.split(":")[0] == "cpu":
        raise row.error("device", "is a CPU, which has no SMs", "Give a table of a GPU")
    simulated = row.text("simulated").lower()
    if simulated not in ("true", "false"):
        raise row.error("simulated", f"is '{simulated:.40}'", "Write true or false")
    return device[:120], simulated == "true", row.text("model"), row.count("gpus", 1024, 1)


def _model(reading: TableReading, row: MeasuredRow) -> ModelSpec:
    """``--model``'s, that of the profile beside the table, or the one of that name."""
    if reading.model is not None:
        return reading.model
    beside = reading.path.parent / PROFILE_FILE
    if beside.is_file():
        profile = load_profile(beside)
        if profile.model.name == row.text("model"):
            return profile.model
    return reading.step_model(row)[0]


def _row(row: MeasuredRow, reading: TableReading) -> SharingRow:
    operator, gpu = row.text("operator"), reading.gpu.gpu
    if operator not in OPERATORS:
        raise row.error("operator", f"is '{operator:.40}'", f"Known: {', '.join(OPERATORS)}")
    own, beside, beside_sms = _batch(row, ""), None, None
    pair = operator in (STREAMS, SPLIT)
    if pair or operator == ATTENTION:
        beside = _batch(row, "beside_")
        beside_sms = row.sms("beside_sms", gpu)
        if row.text("beside_operator") != beside.operator:
            raise row.error("beside_operator", f"is not '{beside.operator}'")
    wanted = {PREFILL: True, DECODE: False, WEIGHTS: False, ATTENTION: False}.get(operator)
    if wanted is not None and bool(own.tokens) != wanted:
        problem = "is missing" if wanted else f"stands in a row of {operator}"
        raise row.error("tokens", problem, "A prefill has new tokens, a decode has none")
    sms = row.sms("sms", gpu)
    if operator == ATTENTION and beside is not None:
        _check_shorter(row, beside, own)
        if beside_sms != sms:
            raise row.error("beside_sms", f"is not the {sms} SMs of the step that takes longer")
    if operator == SPLIT and sms + (beside_sms or 0) > gpu.num_sms:
        problem = f"both sides have {sms + (beside_sms or 0)} SMs; {gpu.name} has {gpu.num_sms}"
        raise row.error("beside_sms", problem, "Give the GPU that was measured, or a larger one")
    sides = [
        row.positive(key) if pair and row.has(key) else None
        for key in ("slowdown", "beside_slowdown", "work_rate")
    ]
    ms = row.positive("beside_ms") if row.has("beside_ms") else None
    return SharingRow(operator, own, sms, row.positive("ms"), beside, beside_sms, ms, *sides)


def _check_shorter(row: MeasuredRow, beside: EqualBatch, own: EqualBatch) -> None:
    if beside.tokens or beside.batch != own.batch or beside.context >= own.context:
        raise row.error("beside_context", "is not a shorter context of the same batch")


def _batch(row: MeasuredRow, prefix: str) -> EqualBatch:
    batch = row.count(f"{prefix}batch", MOST_BATCH)
    tokens = row.count(f"{prefix}tokens", MOST_TOKENS) if row.has(f"{prefix}tokens") else 0
    context = row.whole(f"{prefix}context", MOST_TOKENS, least=0 if tokens else 1)
    if tokens and (batch > MOST_PROMPTS or batch * tokens > MOST_TOKENS):
        raise row.error(f"{prefix}batch", f"{batch:,} prompts of {tokens:,} tokens are too many")
    return EqualBatch(batch, context, tokens)


# -- beside the simulated GPU ----------------------------------------------------------------------


def points_of(table: TableOfSteps, gpu: SimulatedGpu) -> PartitionPoints:
    """The points of some rows; the GPU is cut to the most SMs that they use."""
    most = max((_most_sms(row) for _, row in table.rows), default=gpu.gpu.num_sms)
    scored = ScoredSteps(table, gpu.cut(most), most)
    rows = list(scored.alone())
    weights = every_second(row for row in rows if row.operator == WEIGHTS)
    points, notes = over_all_sms([*weights, *(row for row in rows if row.operator != WEIGHTS)])
    points += scored.pairs()
    if most != gpu.gpu.num_sms:
        notes.append(f"simulated on {most} of the {gpu.gpu.num_sms} SMs: no row is on more")
    if scored.level:
        notes.append(
            f"{scored.level} rows of {ATTENTION} are not scored: as simulated, the longer context "
            "takes no longer"
        )
    if scored.without:
        notes.append(f"{scored.without} pairs have no work rate: a side was not measured")
    return PartitionPoints(points, notes)


def _most_sms(row: SharingRow) -> int:
    beside = row.beside_sms or 0
    return row.sms + beside if row.operator == SPLIT else max(row.sms, beside)


class ScoredSteps:
    """Rows beside one simulated GPU of ``most`` SMs."""

    def __init__(self, table: TableOfSteps, gpu: SimulatedGpu, most: int) -> None:
        self._table, self._gpu, self._most = table, gpu, most
        self.without = 0  # pairs without a work rate
        self.level = 0  # contexts whose attention takes as long as the shorter one's

    def alone(self) -> Iterator[TimeOnSms]:
        """Steps over SMs, and attention as the difference of two."""
        for line, row in self._table.rows:
            if row.operator in (STREAMS, SPLIT):
                continue
            shape, text = row.own.shape, named(row.own.shape)
            groups = (DECODE,) if row.operator == WEIGHTS else ()
            ns = self._step(shape, row.sms)
            if row.operator == ATTENTION and row.beside is not None:
                ns -= self._step(row.beside.shape, row.sms)
                text += f" less {named(row.beside.shape)}"
            if ns > 0:
                ms = ns / _NS_PER_MS
                yield TimeOnSms(row.operator, groups, text, row.sms, row.ms, ms, line)
            else:
                self.level += 1

    def pairs(self) -> list[PartitionPoint]:
        """Slow-downs of both sides, and work rates."""
        return [point for line, row in self._table.rows for point in self._pair(line, row)]

    def _step(self, shape: BatchShape, sms: int) -> float:
        return self._gpu.step(self._table.model, self._table.gpus, shape, sms).solo

    def _pair(self, line: int, row: SharingRow) -> Iterator[PartitionPoint]:
        if row.beside is None or row.beside_sms is None or row.operator == ATTENTION:
            return
        shapes, sms = (row.own.shape, row.beside.shape), (row.sms, row.beside_sms)
        model, gpus, gpu = self._table.model, self._table.gpus, self._gpu
        loads = [gpu.step(model, gpus, shape, n) for shape, n in zip(shapes, sms, strict=True)]
        slowed = gpu.slowdown(loads[0], loads[1]), gpu.slowdown(loads[1], loads[0])
        kind = row.operator.removeprefix("work rate ")
        measured = row.slowdown, row.beside_slowdown
        for i, batch in enumerate((row.own, row.beside)):
            value = measured[i]
            if value is None:
                continue
            phase = batch.operator.removesuffix(" step")
            yield pair_point(
                f"neighbour {kind} {phase}", (shapes[i], shapes[1 - i]), (sms[i], sms[1 - i]),
                BESIDE, (value, slowed[i]), line,
            )  # fmt: skip
        if row.work_rate is None:
            self.without += 1
            return
        rate = sum(self._step(shapes[i], self._most) / (loads[i].solo * slowed[i]) for i in (0, 1))
        yield pair_point(row.operator, shapes, sms, WORK_RATE, (row.work_rate, rate), line)

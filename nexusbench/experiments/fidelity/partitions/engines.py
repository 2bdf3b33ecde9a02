"""Readers of what whole engines measured: what of it can be set beside a simulated GPU."""

from __future__ import annotations

from nexusbench.core.batch import BatchShape
from nexusbench.experiments.fidelity.partitions.cells import MOST_TOKENS, MeasuredRow
from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.experiments.fidelity.partitions.points import (
    BESIDE,
    WORK_RATE,
    PartitionPoint,
    PartitionPoints,
)
from nexusbench.experiments.fidelity.partitions.reading import TableReading

_DECODES, _CONTEXT = 8, 1000  # of a decode step that the source does not describe


def servers(reading: TableReading) -> PartitionPoints:
    """``mode,tpot_mean_ms,ttft_mean_ms,itl_p99_ms``: two servers on one GPU. Nothing is scored."""
    modes = []
    for row in reading.rows():
        modes.append(row.text("mode")[:60])
        for key in ("tpot_mean_ms", "ttft_mean_ms", "itl_p99_ms"):
            row.positive(key)
    note = (
        f"not scored: {'; '.join(modes)[:400]}. Batches and load are not given, and a mean over "
        "them says nothing of one step. 'nexusbench serve-trace' on a trace of that load would"
    )
    return PartitionPoints(notes=[note])


def lanes(reading: TableReading) -> PartitionPoints:
    """``chunk,mode,gap_median_ms,gap_p99_ms,...,prefill_tok_s``: decodes with a prompt's chunks
    between them (``serial``), and beside them in a second stream (``overlap``).
    """
    found: dict[int, dict[str, MeasuredRow]] = {}
    for row in reading.rows():
        mode = row.text("mode").lower()
        if mode not in ("serial", "overlap"):
            raise row.error("mode", f"is '{mode:.40}'", "Write serial or overlap")
        for key in ("gap_median_ms", "gap_p99_ms", "prefill_tok_s"):
            if key != "prefill_tok_s" or row.has(key):
                row.positive(key)
        modes = found.setdefault(row.count("chunk", MOST_TOKENS), {})
        if mode in modes:
            raise row.error("mode", f"is {mode} a second time for this chunk")
        modes[mode] = row
    made = PartitionPoints()
    left: list[int] = []
    for chunk, modes in found.items():
        if len(modes) == 2 and all(row.has("prefill_tok_s") for row in modes.values()):
            made.points += _lane_points(reading, chunk, modes["serial"], modes["overlap"])
        else:
            left.append(chunk)
    made.notes.append(
        f"a step of {_DECODES} decodes of {_CONTEXT:,} tokens and a chunk of the model stand for "
        "those of a model that is not described; a decode's slow-down is overlap's p99 gap over "
        "serial's median, a chunk's is serial's tokens per second over overlap's"
    )
    if left:
        made.notes.append(f"not scored, one of two modes has no rate: chunks of {str(left)[1:-1]}")
    return made


def _lane_points(
    reading: TableReading, chunk: int, serial: MeasuredRow, overlap: MeasuredRow
) -> list[PartitionPoint]:
    (model, gpus), gpu = reading.step_model(serial), reading.gpu
    most = gpu.gpu.num_sms
    prefill = gpu.step(model, gpus, BatchShape(0, 0, ((chunk, 0),)), most)
    decode = gpu.step(model, gpus, BatchShape(_DECODES, _DECODES * _CONTEXT), most)
    slowed = {
        "prefill": (
            serial.positive("prefill_tok_s") / overlap.positive("prefill_tok_s"),
            gpu.slowdown(prefill, decode),
        ),
        "decode": (
            overlap.positive("gap_p99_ms") / serial.positive("gap_median_ms"),
            gpu.slowdown(decode, prefill),
        ),
    }
    shape = f"two lanes, chunk={chunk}"
    half = may_be_fitted(shape)
    rates = [sum(1.0 / both[i] for both in slowed.values()) for i in (0, 1)]
    sms = most, most
    points = [
        PartitionPoint(
            "work rate streams", (), shape, sms, WORK_RATE, rates[0], rates[1], overlap.line, half
        )
    ]
    for side, (measured, simulated) in slowed.items():
        points.append(
            PartitionPoint(
                f"neighbour streams {side}", (), shape, sms, BESIDE, measured, simulated,
                overlap.line, half,
            )
        )  # fmt: skip
    return points

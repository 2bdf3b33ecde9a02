"""What a profile says about sharing a device: steps over its SMs, and two batches at once; and
``partitions.csv``, in which it stands beside ``profile.json``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.outputs import write_synced
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import PARTITIONS_FILE, Fingerprint

PREFILL, DECODE, WEIGHTS, ATTENTION = "prefill step", "decode step", "weights", "decode attention"
STREAMS, SPLIT = "work rate streams", "work rate split"
OPERATORS = (PREFILL, DECODE, WEIGHTS, ATTENTION, STREAMS, SPLIT)
# A difference of two times is told where their intervals leave a tenth of it in doubt at most.
_CERTAIN = 10.0
_NS_PER_MS = 1e6
_MOST_GPUS = "gpus"  # a column more where the model is split over several


class EqualBatch(msgspec.Struct, frozen=True):
    """A batch of equal sequences: ``batch`` prompts of ``tokens`` new tokens after ``context``
    others, or with ``tokens`` 0 ``batch`` decodes at ``context`` tokens each.
    """

    batch: int
    context: int
    tokens: int = 0

    @property
    def operator(self) -> str:
        """The name of its step."""
        return PREFILL if self.tokens else DECODE

    @property
    def shape(self) -> BatchShape:
        """The batch that a device is given."""
        if self.tokens:
            return BatchShape(0, 0, ((self.tokens, self.context),) * self.batch)
        return BatchShape(self.batch, self.batch * self.context)


class SharingRow(msgspec.Struct, frozen=True):
    """A row of ``partitions.csv``; None where nothing was measured or nothing applies.

    ``own`` on ``sms`` SMs takes ``ms``; in a work rate beside ``beside`` on ``beside_sms``, which
    takes ``beside_ms``. Slow-downs are over the time alone on the same SMs; ``work_rate`` is the
    sum over both sides of the time alone on all SMs over the time here. ``decode attention``:
    ``ms`` is how much longer ``own`` takes than ``beside``, the same batch at a shorter context,
    which takes ``beside_ms`` on as many SMs.
    """

    operator: str
    own: EqualBatch
    sms: int
    ms: float
    beside: EqualBatch | None = None
    beside_sms: int | None = None
    beside_ms: float | None = None
    slowdown: float | None = None
    beside_slowdown: float | None = None
    work_rate: float | None = None


COLUMNS = (
    "device", "simulated", "model", "operator", "batch", "context", "tokens", "sms", "ms",
    "beside_operator", "beside_batch", "beside_context", "beside_tokens", "beside_sms", "beside_ms",
    "slowdown", "beside_slowdown", "work_rate",
)  # fmt: skip


def equal_batch(shape: BatchShape, contexts: Sequence[int] = ()) -> EqualBatch | None:
    """The batch in numbers of one sequence; None where its sequences differ, or it is mixed."""
    whole = shape.layers is None and shape.repeat == 1 and shape.remote is None
    if not whole or contexts or (shape.chunks and shape.num_decodes):
        return None
    if shape.chunks:
        tokens, before = shape.chunks[0]
        equal = all(chunk == shape.chunks[0] for chunk in shape.chunks)
        return EqualBatch(len(shape.chunks), before, tokens) if equal else None
    each, rest = divmod(shape.decode_context, shape.num_decodes)
    return None if rest or not each else EqualBatch(shape.num_decodes, each)


def sharing_rows(points: Iterable[Point], num_sms: int) -> list[SharingRow]:
    """The rows of points measured on a device of ``num_sms`` SMs, in the order of the points:
    steps, attention, pairs.
    """
    points = list(points)
    alone: dict[tuple[EqualBatch, int], Point] = {}
    for point in points:
        setting = point.setting
        own = equal_batch(setting.shape, setting.contexts)
        if own is not None and setting.neighbour is None:
            alone.setdefault((own, setting.sms), point)
    return [*_steps(alone), *_attention(alone), *_pairs(points, alone, num_sms)]


def _steps(alone: dict[tuple[EqualBatch, int], Point]) -> Iterator[SharingRow]:
    single = [own.context for own, _ in alone if own.batch == 1 and not own.tokens]
    weights = EqualBatch(1, min(single)) if single else None
    for (own, sms), point in alone.items():
        name = WEIGHTS if own == weights else own.operator
        yield SharingRow(name, own, sms, point.ns / _NS_PER_MS)


def _attention(alone: dict[tuple[EqualBatch, int], Point]) -> Iterator[SharingRow]:
    """Each decode batch against the one of the shortest context, where that tells anything."""
    shortest: dict[int, int] = {}
    for own, _ in alone:
        if not own.tokens:
            shortest[own.batch] = min(own.context, shortest.get(own.batch, own.context))
    for (own, sms), point in alone.items():
        if own.tokens:
            continue
        less = EqualBatch(own.batch, shortest[own.batch])
        short = alone.get((less, sms))
        if short is None or short is point:
            continue
        more = point.ns - short.ns
        doubt = point.ns * point.interval + short.ns * short.interval
        if more > 0 and more >= _CERTAIN * doubt:
            yield SharingRow(
                ATTENTION, own, sms, more / _NS_PER_MS, less, sms, short.ns / _NS_PER_MS
            )


def _pairs(
    points: Iterable[Point], alone: dict[tuple[EqualBatch, int], Point], num_sms: int
) -> Iterator[SharingRow]:
    """A row for each pair: the prefill's, or of two batches of one phase that of the first."""
    found: dict[tuple[EqualBatch, int, EqualBatch, int], Point] = {}
    for point in points:
        setting = point.setting
        if setting.neighbour is None or point.slowdown is None:
            continue
        own, beside = equal_batch(setting.shape, setting.contexts), equal_batch(setting.neighbour)
        if own is not None and beside is not None:
            found[own, setting.sms, beside, setting.neighbour_sms] = point
    told = set()
    for (own, sms, beside, beside_sms), point in found.items():
        mirrored = (beside, beside_sms, own, sms)
        back = found.get(mirrored)
        # The prefill's row comes first where both sides were measured.
        if mirrored in told or (back is not None and beside.tokens and not own.tokens):
            continue
        told.add((own, sms, beside, beside_sms))
        whole = alone.get((own, num_sms)), alone.get((beside, num_sms))
        rate = None
        if back is not None and whole[0] is not None and whole[1] is not None:
            rate = whole[0].ns / point.ns + whole[1].ns / back.ns
        yield SharingRow(
            STREAMS if sms + beside_sms > num_sms else SPLIT,
            own, sms, point.ns / _NS_PER_MS, beside, beside_sms,
            None if back is None else back.ns / _NS_PER_MS,
            point.slowdown, None if back is None else back.slowdown, rate,
        )  # fmt: skip


def write_partitions(folder: Path, identity: Fingerprint, rows: Iterable[SharingRow]) -> Path:
    """Write ``partitions.csv`` in one step: a reader sees the old file or the new one."""
    several = identity.tensor_parallel > 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, _MOST_GPUS) if several else COLUMNS)
    for row in rows:
        cells = [
            identity.device, "true" if identity.simulated else "false", identity.model,
            row.operator, *_batch(row.own), row.sms, _number(row.ms),
            "" if row.beside is None else row.beside.operator, *_batch(row.beside),
            "" if row.beside_sms is None else row.beside_sms,
            *map(_number, (row.beside_ms, row.slowdown, row.beside_slowdown, row.work_rate)),
        ]  # fmt: skip
        writer.writerow([*cells, identity.tensor_parallel] if several else cells)
    path = folder / PARTITIONS_FILE
    write_synced(path, text.getvalue().encode())
    return path


def _batch(own: EqualBatch | None) -> tuple[str, str, str]:
    """batch, context, tokens."""
    if own is None:
        return "", "", ""
    return str(own.batch), str(own.context), str(own.tokens) if own.tokens else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"

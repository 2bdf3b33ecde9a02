"""The formats of measured partitions, found by the columns of a table's header."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.experiments.fidelity.partitions import alone, engines, pairs, shared
from nexusbench.experiments.fidelity.partitions.cells import header_of
from nexusbench.experiments.fidelity.partitions.points import PartitionPoints
from nexusbench.experiments.fidelity.partitions.profiled import read_profile
from nexusbench.experiments.fidelity.partitions.reading import LAYOUT, MLP, STEP, TableReading
from nexusbench.experiments.fidelity.partitions.simulated import SimulatedGpu
from nexusbench.profiles.sharing import COLUMNS


class PartitionFormat(msgspec.Struct, frozen=True):
    """A reader, and the columns that it is found by: names, or patterns for those with a number in
    them. ``optional`` columns are read where they are there, ``unread`` follow from others.
    """

    read: Callable[[TableReading], PartitionPoints]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def matches(self, columns: tuple[str, ...]) -> bool:
        """Whether a header has all of its columns."""
        return not self.missing(columns)

    def missing(self, columns: tuple[str, ...]) -> list[str]:
        """Its columns that a header has not."""
        return [p for p in self.columns if not any(re.fullmatch(p, c) for c in columns)]

    def not_used(self, columns: tuple[str, ...]) -> list[str]:
        """The columns of a header that it knows nothing of."""
        known = (*self.columns, *self.optional, *self.unread, "gpu")
        return [c for c in columns if c and not any(re.fullmatch(p, c) for p in known)]


_REL = r"rel_to_\d+"
_RATE = "sequential_over_both"
FORMATS = (
    PartitionFormat(alone.scan, ("sms", "memory_kernel_ms")),
    PartitionFormat(alone.reads, ("sms", "gb_per_s")),
    PartitionFormat(
        alone.kernels, ("op", "K", "N", "tokens_or_batch", "context", "sms", "ms"), LAYOUT
    ),
    PartitionFormat(
        alone.steps, ("model", "gpus", "mps_percent", "batch", "tokens_each", "phase", "ms")
    ),
    PartitionFormat(alone.decode_attention, ("batch", "context", "sms", "ms"), LAYOUT, (_REL,)),
    PartitionFormat(alone.prefill_attention, ("prefill_tokens", "sms", "ms"), LAYOUT, (_REL,)),
    PartitionFormat(alone.mlp, ("tokens", "sms", "ms"), MLP, (_REL,)),
    PartitionFormat(alone.stages, ("stage", "sms", _REL), STEP),
    PartitionFormat(
        pairs.coruns,
        (
            "decode_batch", "context", "prefill_tokens", "mode", "prefill_sms", "decode_sms",
            "solo_prefill_ms", "solo_decode_ms", "prefill_ms", "decode_ms",
        ),
        ("of", "both_ms", *LAYOUT, *STEP),
        (_RATE,),
    ),
    PartitionFormat(
        pairs.streams_or_green,
        ("gpu", "what", "single_stream_ms", "two_streams_ms", "green_contexts_ms"),
        unread=("two_streams_work_rate", "green_work_rate"),
    ),
    PartitionFormat(
        pairs.gemv_beside_gemm,
        (
            "sms_shared", "gemv_n", "gemm_n", "gemv_alone_ms", "gemm_alone_ms", "gemv_beside_ms",
            "gemm_beside_ms",
        ),
        unread=(_RATE,),
    ),
    PartitionFormat(
        pairs.copies, ("blocks_each", r"alone_\d{1,6}sms_gb_s", r"beside_other_\d{1,6}sms_gb_s")
    ),
    PartitionFormat(shared.shared, COLUMNS, ("gpus",)),
    PartitionFormat(engines.servers, ("mode", "tpot_mean_ms", "ttft_mean_ms", "itl_p99_ms")),
    PartitionFormat(
        engines.lanes, ("chunk", "mode", "gap_median_ms", "gap_p99_ms", "prefill_tok_s"), STEP,
        ("gap_max_ms", "injected_ttft_ms"),
    ),
)  # fmt: skip


def format_of(path: Path, columns: tuple[str, ...]) -> PartitionFormat:
    """The format that knows most of these columns. Raises InputError if it lacks some of its own: a
    table of kernels without its batches has all columns of an MLP's. Lists those of all formats.
    """
    near = [known for known in FORMATS if 2 * len(known.missing(columns)) <= len(known.columns)]

    def rank(known: PartitionFormat) -> tuple[int, bool, int]:
        return -len(known.not_used(columns)), known.matches(columns), len(known.columns)

    found = max(near, key=rank, default=None)
    if found is not None and found.matches(columns):
        return found
    nearest = ""
    if found is not None:
        nearest = f"The nearest ({_text(found.columns)}) lacks {_text(found.missing(columns))}. "
    lists = " | ".join(_text(known.columns) for known in FORMATS)
    raise InputError(
        f"has the columns {','.join(columns)[:200]}, which are of no known format",
        file=path, line=1, hint=f"{nearest}A table has those of one of: {lists}",
    )  # fmt: skip


def _text(patterns: Sequence[str]) -> str:
    """Columns as a user writes them, N for a number."""
    return ",".join(re.sub(r"\\d(\+|\{1,6\})", "N", pattern) for pattern in patterns)


def read_partitions(
    path: Path,
    gpu: GpuSpec,
    model: ModelSpec | None = None,
    lines: frozenset[int] | None = None,
) -> PartitionPoints:
    """The points of a table, or of a profile (its folder or ``profile.json``), beside ``gpu``; of a
    table only those of some ``lines``, if they are given.
    """
    if path.is_dir() or path.suffix in (".json", ".jsonl"):
        return read_profile(path, gpu)
    return read_table(path, gpu, model, lines)


def read_table(
    path: Path,
    gpu: GpuSpec,
    model: ModelSpec | None = None,
    lines: frozenset[int] | None = None,
) -> PartitionPoints:
    """The points of a table beside ``gpu``. ``model`` tells shapes that the table does not;
    ``lines`` as in ``read_partitions``. Raises InputError naming file, line and column.
    """
    if model is not None and model.stack is not UNSET:
        raise InputError(
            f"{model.name} has layers of several kinds, and a row is of one",
            file=path, hint="Give a model whose layers are all alike",
        )  # fmt: skip
    columns = header_of(path)
    known = format_of(path, columns)
    reading = TableReading(path, columns, SimulatedGpu(gpu), model, lines=lines)
    made = known.read(reading)
    made.notes += reading.notes
    for name in known.not_used(columns):
        made.notes.append(f"column '{name[:60]}' is not used")
    return made

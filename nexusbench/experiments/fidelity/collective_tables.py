"""Collectives measured for aiconfigurator: vLLM's all-reduce, and NCCL's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.experiments.fidelity.typed_rows import Count, Millis, newest, read_rows
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.link_kinds import link_of

ENGINE, LIBRARY = "comm/vllm/*/custom_allreduce_perf.parquet", "comm/nccl/*/nccl_perf.parquet"
_BYTES = {"bfloat16": 2, "half": 2, "float16": 2, "float": 4, "float32": 4, "int8": 1}
_NAMES = {
    "all_reduce": "nccl all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
}
_Gpus = Annotated[int, msgspec.Meta(ge=2, le=4096)]
_Times = dict[str, Callable[[float], float]]
LEFT_OUT = (
    "all-reduce is vLLM's out of CUDA graphs; launched one by one it takes the host's time, and is "
    "left out"
)


class EngineRow(msgspec.Struct, frozen=True):
    """A measured all-reduce of an engine: ``message_size`` values on each GPU; ms."""

    kernel_source: str
    allreduce_dtype: str
    num_gpus: _Gpus
    message_size: Count
    latency: Millis


class LibraryRow(msgspec.Struct, frozen=True):
    """A measured collective of NCCL: ``message_size`` values in the whole buffer; ms."""

    op_name: str
    nccl_dtype: str
    num_gpus: _Gpus
    message_size: Count
    latency: Millis


def read_collectives(folder: Path, gpu: GpuSpec, gpu_name: str) -> list[KernelSample]:
    """The collectives in a system's folder: the newest table of vLLM and of NCCL, either of which
    may be missing. Raises InputError for a table that is broken.
    """
    fitted = gpu_name.lower() in link_of(gpu)[1].fitted_on
    over: dict[int, _Times] = {}
    samples: list[KernelSample] = []
    if (path := newest(folder, ENGINE)) is not None:
        for row in read_rows(path, EngineRow):
            if row.kernel_source.endswith("_graph"):
                samples += _sample(
                    "all-reduce", row.allreduce_dtype, row, _times(over, gpu, row.num_gpus), fitted
                )
    if (path := newest(folder, LIBRARY)) is not None:
        for line in read_rows(path, LibraryRow):
            name = _NAMES.get(line.op_name)
            if name is not None:
                samples += _sample(
                    name, line.nccl_dtype, line, _times(over, gpu, line.num_gpus), fitted
                )
    return samples


def _times(over: dict[int, _Times], gpu: GpuSpec, gpus: int) -> _Times:
    if gpus not in over:
        made = Collectives(gpu, gpus)
        over[gpus] = {
            "all-reduce": made.all_reduce,
            "nccl all-reduce": made.library_all_reduce,
            "all-gather": made.all_gather,
            "reduce-scatter": made.reduce_scatter,
            "all-to-all": made.all_to_all,
        }
    return over[gpus]


def _sample(
    name: str, dtype: str, row: EngineRow | LibraryRow, times: _Times, fitted: bool
) -> Iterator[KernelSample]:
    """Of a data type that is known; halves are of whole sizes, by number of GPUs."""
    width = _BYTES.get(dtype)
    if width is None:
        return
    size = row.message_size * width
    half = (math.floor(math.log2(row.message_size)) + math.floor(math.log2(row.num_gpus))) % 2 == 0
    curve = row.num_gpus, dtype
    time = times[name](size) / 1e3
    yield KernelSample(name, row.latency * 1e3, time, fitted and half, curve, size)

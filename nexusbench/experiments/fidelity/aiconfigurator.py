"""Kernels measured for aiconfigurator (Apache-2.0): parquet tables of GEMM and attention, ms."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from nexusbench.core.documents import located
from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.collective_tables import LEFT_OUT, read_collectives
from nexusbench.experiments.fidelity.latent_tables import LEFT_OUT as LATENT_LEFT_OUT
from nexusbench.experiments.fidelity.latent_tables import read_latent
from nexusbench.experiments.fidelity.samples import KernelSample, KernelSamples
from nexusbench.physics.operators import Attention, Gemm
from nexusbench.physics.windows import WindowAttention

if TYPE_CHECKING:
    import pyarrow as pa

SYSTEMS = {"h200": "h200_sxm", "h100": "h100_sxm", "a100": "a100_sxm", "l40s": "l40s"}
# Its vLLM collector goes round six weights of a product (collect_gemm.py, outside_loop_count), and
# repeats attention on one set of operands.
GEMM_COPIES, ATTENTION_COPIES = 6, 1
SMALL_FITTED = ("h200", "h100", "l40s")  # whose fit took small products in, too
_COUNT, _TIME = (1, 2**31), (1e-9, 1e9)
# Columns that are read, and the least and greatest value of those that hold numbers.
COLUMNS: dict[str, dict[str, tuple[float, float] | None]] = {
    "gemm": {"gemm_dtype": None, "m": _COUNT, "n": _COUNT, "k": _COUNT, "latency": _TIME},
    "attention": {
        "kernel_source": None, "attn_dtype": None, "kv_cache_dtype": None,
        "batch_size": (1, 2**16), "isl": _COUNT, "num_heads": (1, 2**16),
        "num_key_value_heads": (1, 2**16), "head_dim": (1, 2**16), "step": (0, 2**31),
        "latency": _TIME,
    },
}  # fmt: skip
SMALLEST = 1024  # N and K of the products that decoder layers have; smaller ones are scored apart


class GemmRow(msgspec.Struct, frozen=True):
    """A measured product: (m, k) by (k, n); ``latency`` in ms."""

    gemm_dtype: str
    m: int
    n: int
    k: int
    latency: float


class AttentionRow(msgspec.Struct, frozen=True):
    """Measured attention over a batch: ``isl`` tokens after ``step`` ones; ``latency`` in ms."""

    kernel_source: str
    attn_dtype: str
    kv_cache_dtype: str
    batch_size: int
    isl: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    step: int
    latency: float
    # Tables of before it was measured have none.
    window_size: Annotated[int, msgspec.Meta(ge=0, le=2**31)] | None = None


RowT = TypeVar("RowT", GemmRow, AttentionRow)


def installed(gpu_name: str) -> Path:
    """The tables of a shipped GPU in the installed package. Raises InputError if there are none."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the package aiconfigurator is not installed", hint="pip install nexusbench[validate]"
        )
    if gpu_name.lower() not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise InputError(f"it has no GPU that is '{gpu_name}' here", hint=f"Known: {known}")
    root = Path(spec.submodule_search_locations[0]) / "systems" / "data"
    return root / SYSTEMS[gpu_name.lower()]


def read(folder: Path, gpu: GpuSpec, gpu_name: str, thin: int = 1) -> KernelSamples:
    """The bf16 kernels of vLLM in a system's folder, every ``thin``-th row of them. Raises
    InputError if there are none.
    """
    fitted = gpu_name.lower() in SYSTEMS
    samples = KernelSamples([])
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    small = gpu_name.lower() in SMALL_FITTED
    products = _rows(folder, "gemm", "gemm_perf", GemmRow)[::thin]
    samples.samples += _gemm(products, gpu, bandwidth, fitted, small)
    for kind in ("context", "generation"):
        rows = _rows(folder, "attention", f"{kind}_attention_perf", AttentionRow)[::thin]
        samples.samples += _attention(rows, kind, gpu, bandwidth, fitted)
    latent = read_latent(folder, gpu, fitted, thin)
    samples.samples += latent
    samples.notes += [LATENT_LEFT_OUT] if latent else []
    collectives = read_collectives(folder, gpu, gpu_name)[::thin]
    samples.samples += collectives
    samples.notes += [LEFT_OUT] if collectives else []
    samples.notes.append(
        "left out: fp8 operands or KV cache, heads above 256, and kernels other "
        "than FlashAttention 2 and 3"
    )
    return samples


@lru_cache
def _rows(folder: Path, family: str, name: str, kind: type[RowT]) -> list[RowT]:
    """The newest vLLM table of a family."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(
        folder.glob(f"{family}/vllm/*/{name}.parquet"),
        key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdecimal()],
    )
    if not paths:
        raise InputError(
            f"holds no {family}/vllm/*/{name}.parquet", file=folder, hint="Give a system's folder"
        )
    hint = "Give a system's folder of aiconfigurator"
    try:
        table = pq.read_table(paths[-1])
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = f"cannot be read: {' '.join(str(error).split())}"
        raise InputError(problem, file=paths[-1], hint=hint) from None
    for name, bounds in COLUMNS[family].items():
        _check_column(table, name, bounds, paths[-1], hint)
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            found.append(msgspec.convert(row, kind))
        except msgspec.ValidationError as error:  # a column that not every table has
            field, problem = located(error)
            problem = f"row {number}: {problem}"
            raise InputError(problem, file=paths[-1], field=field, hint=hint) from None
    return found


def _check_column(
    table: pa.Table, name: str, bounds: tuple[float, float] | None, file: Path, hint: str
) -> None:
    """Text where there are no ``bounds``, else numbers within them, whole ones but for a time.
    Raises InputError that names file, column and row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in table.column_names:
        raise InputError("has no such column", file=file, field=name, hint=hint)
    column, kind = table.column(name), table.schema.field(name).type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_floating(kind) if name == "latency" else pa.types.is_integer(kind)
    if not (text if bounds is None else number):
        raise InputError(f"is a column of {kind}", file=file, field=name, hint=hint)
    good = pc.is_valid(column)
    if bounds is not None:
        within = pc.greater_equal(column, bounds[0]), pc.less_equal(column, bounds[1])
        good = pc.and_(good, pc.and_(*within))
    wrong = pc.index(pc.fill_null(good, False), False).as_py()
    if wrong >= 0:
        found = column[wrong].as_py()
        problem = f"row {wrong + 1} is {found!r:.40}"
        raise InputError(problem, file=file, field=name, hint=hint)


def _gemm(
    rows: list[GemmRow], gpu: GpuSpec, bandwidth: float, fitted: bool, small: bool
) -> Iterator[KernelSample]:
    gemm = Gemm(gpu)
    for row in rows:
        if row.gemm_dtype != "bfloat16":
            continue
        m, n, k = row.m, row.n, row.k
        made = gemm.time(m, k, n, 2.0, 2.0, gpu.num_sms, bandwidth, copies=GEMM_COPIES)
        large = min(n, k) >= SMALLEST
        yield KernelSample(
            "gemm" if large else "gemm under 1024",
            row.latency * 1e3,
            made.time / 1e3,
            fitted and (large or small) and (_sevenths(n, 7) + _sevenths(k, 11)) % 2 == 0,
            (n, k),
            m,
        )


def _sevenths(size: int, parts: int) -> int:
    """A number that whole shapes are split by: log2 of ``size`` in ``parts``-ths."""
    return math.floor(math.log2(size) * parts)


def _attention(
    rows: list[AttentionRow], kind: str, gpu: GpuSpec, bandwidth: float, fitted: bool
) -> Iterator[KernelSample]:
    layouts: dict[tuple[int, int, int, int], Attention] = {}
    for row in rows:
        heads, kv_heads, head_dim = row.num_heads, row.num_key_value_heads, row.head_dim
        if (
            row.attn_dtype != "bfloat16"
            or row.kv_cache_dtype != "bfloat16"
            or head_dim > 256
            or "flash_attn" not in row.kernel_source
        ):
            continue
        layout, window = (heads, kv_heads, head_dim), row.window_size or 0
        one = layouts.get((*layout, window))
        if one is None:
            one = WindowAttention(gpu, *layout, window) if window else Attention(gpu, *layout)
            layouts[*layout, window] = one
        batch, tokens = row.batch_size, row.isl
        before = row.step if kind == "generation" else 0
        # A prompt of one token is what vLLM runs as a decode.
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = one.time(
            chunks, decodes, decodes * (before + 1), gpu.num_sms, bandwidth, copies=ATTENTION_COPIES
        )
        family = "window" if window else "attention"
        name = f"{family} prefill" if kind == "context" else f"{family} decode"
        count = tokens if kind == "context" else before
        half = round(heads * 5 + kv_heads * 3 + head_dim / 64) * 7919 % 13 < 6.5
        yield KernelSample(
            name,
            row.latency * 1e3,
            made.time / 1e3,
            fitted and half,
            (*layout, window, batch),
            count,
        )

"""Low-precision products, quantisation of activations and experts in aiconfigurator's tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import KernelConstants
from nexusbench.core.specs import DTYPE_BYTES, GpuSpec
from nexusbench.experiments.fidelity.parquet_rows import RowT, rows_of
from nexusbench.experiments.fidelity.routing_draw import routing
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.physics.experts import Experts, ExpertShape
from nexusbench.physics.gemm import Quantise, ScaledGemm
from nexusbench.physics.precisions import (
    expert_constants,
    experts_kernel,
    product_constants,
    product_kernel,
    quantise_constants,
)

SMALLEST = 1024  # as of bfloat16 products
DRAWS = 5  # of a power law, that the collector goes round
NARROWEST = 128  # values between an expert's products; narrower ones are scored apart
# How a type's products were measured: the engine of the table, how many weights its collector goes
# round, and how activations were quantised. vLLM's own products with scales of blocks were launched
# one by one from the host, which took longer than most of them: SGLang's were not.
PRODUCTS = {"fp8": ("vllm", 6, "tensor"), "fp8_block": ("sglang", 6, "block"),
            "nvfp4": ("vllm", 1, "block")}  # fmt: skip
# A type in the tables: the data type of its weights here.
_EXPERTS = {
    "bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4", "int4_wo": "int4_g128", "w4a8_mxfp4_mxfp8": "mxfp4",
}  # fmt: skip
# With 8-bit activations: of SGLang, which has the same kernel (TensorRT-LLM's in FlashInfer) at
# shapes of several models, where vLLM's table has one.
_QUANTISED, _QUANTISED_BY = "w4a8_mxfp4_mxfp8", "sglang"
NOTES = [
    "products in low precision include the quantisation of their activations; those with scales of "
    "blocks (fp8_block) are SGLang's, which were launched from a graph",
    "experts include everything from sorted tokens to summed outputs; those of MXFP4 with 8-bit "
    "activations (mxfp4_mxfp8) are SGLang's",
]


class ProductRow(msgspec.Struct, frozen=True):
    """A measured product: (m, k) by (k, n); ``latency`` in ms."""

    gemm_dtype: str
    m: int
    n: int
    k: int
    latency: float


class QuantiseRow(msgspec.Struct, frozen=True):
    """Quantisation of (m, k) values; ``latency`` in ms."""

    quant_dtype: str
    m: int
    k: int
    latency: float


class ExpertsRow(msgspec.Struct, frozen=True):
    """The experts of a layer on one GPU of those that share them; ``latency`` in ms."""

    kernel_source: str
    moe_dtype: str
    distribution: str
    num_tokens: int
    hidden_size: int
    inter_size: int
    topk: int
    num_experts: int
    moe_tp_size: int
    moe_ep_size: int
    latency: float


def sevenths(size: float, parts: int) -> int:
    """A number that whole shapes are split by: log2 of ``size`` in ``parts``-ths."""
    return math.floor(math.log2(size) * parts)


def _optional(
    folder: Path, family: str, name: str, kind: type[RowT], engine: str = "vllm"
) -> list[RowT]:
    """Rows of a table that not every system has."""
    if not any(folder.glob(f"{family}/{engine}/*/{name}.parquet")):
        return []
    return rows_of(folder, family, name, kind, engine)


def products(
    folder: Path, gpu: GpuSpec, fitted: bool, thin: int, family: str = ""
) -> Iterator[KernelSample]:
    """Products in low precision, with the quantisation of what goes in; a fitted half only of kinds
    whose constants are the GPU's own. ``family``: an operator that the others are left out for.
    """
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    for kind, (engine, copies, scales) in PRODUCTS.items():
        kernel = product_kernel(gpu, kind)
        if kernel.kind != kind or family not in ("", f"gemm-{kind}"):
            continue  # the GPU has no tensor cores for it
        own = fitted and kernel.origin == gpu.name
        gemm = ScaledGemm(
            gpu, product_constants(gpu, kind), DTYPE_BYTES[kind], kernel.activation_bytes
        )
        quantise = Quantise(gpu, quantise_constants(gpu), scales)
        rows = _optional(folder, "gemm", "gemm_perf", ProductRow, engine)
        for row in [row for row in rows if row.gemm_dtype == kind][::thin]:
            m, n, k = row.m, row.n, row.k
            made = gemm.time(m, k, n, gpu.num_sms, bandwidth, copies=copies).time
            made += quantise.time(m, k, gpu.num_sms, bandwidth).time
            half = own and (sevenths(n, 7) + sevenths(k, 11)) % 2 == 0
            name = f"gemm-{kind}" + ("" if min(n, k) >= SMALLEST else " under 1024")
            yield KernelSample(name, row.latency * 1e3, made / 1e3, half, (n, k), m)


def quantisation(folder: Path, gpu: GpuSpec, fitted: bool, thin: int) -> Iterator[KernelSample]:
    """Quantisation to FP8 by itself: with scales that are known, and with one of each row, whose
    table holds what finding them adds.
    """
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    own = fitted and isinstance(gpu.kernels, KernelConstants) and gpu.kernels.quantise is not None
    known = _optional(folder, "quantize", "scale_matrix_perf", QuantiseRow)
    adds = _optional(folder, "quantize", "computescale_perf", QuantiseRow)
    more = {(row.m, row.k): row.latency for row in adds}
    even = set(sorted({row.k for row in known})[::2])
    constants = quantise_constants(gpu)
    for scales in ("static", "row"):
        quantise = Quantise(gpu, constants, scales)
        for row in known[::thin]:
            added = 0.0 if scales == "static" else more.get((row.m, row.k))
            if row.quant_dtype != "fp8" or added is None or not row.latency:
                continue
            made = quantise.time(row.m, row.k, gpu.num_sms, bandwidth).time
            yield KernelSample(
                f"quantise-{scales}", (row.latency + added) * 1e3, made / 1e3,
                own and row.k in even, (row.k,), row.m,
            )  # fmt: skip


def experts(
    folder: Path, gpu: GpuSpec, fitted: bool, thin: int, family: str = ""
) -> Iterator[KernelSample]:
    """The experts of a layer; ``family`` as in ``products``."""
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    built: dict[tuple[object, ...], Experts] = {}
    rows = _expert_rows(folder)
    usual = _usual(rows)
    for number, row in enumerate(rows):
        weights = _EXPERTS.get(row.moe_dtype)
        if weights is None or number % thin:
            continue
        activations = "mxfp8" if row.moe_dtype == _QUANTISED else "bfloat16"
        kernel = experts_kernel(gpu, weights, activations)
        if row.moe_dtype == _QUANTISED and kernel.kind != "mxfp4_mxfp8":
            continue  # the GPU has no tensor cores for it
        # MXFP4 on MARLIN is what 4-bit weights are elsewhere, whatever the scales.
        kind = "w4a16" if "marlin" in row.kernel_source else kernel.kind
        name = "experts" + ("" if kind == "bf16" else f"-{kind}")
        if family not in ("", name):
            continue
        hidden, width = row.hidden_size, max(1, row.inter_size // row.moe_tp_size)
        held = max(1, row.num_experts // row.moe_ep_size)
        key = hidden, width, _gated(row), weights, kind
        if key not in built:
            shape = ExpertShape(
                hidden, width, _gated(row), DTYPE_BYTES[weights], kernel.activation_bytes
            )
            built[key] = Experts(gpu, expert_constants(gpu, kind), shape)
        load = routing(
            row.num_tokens, row.num_experts, row.topk, row.moe_ep_size, _exponent(row, folder)
        )
        copies = 1 if row.distribution == "balanced" else DRAWS
        made = built[key].time(load, gpu.num_sms, bandwidth, copies=copies).time / 1e3
        own = isinstance(gpu.kernels, KernelConstants) and kind in gpu.kernels.experts
        parts = sevenths(hidden, 7) + sevenths(width, 5)
        parts += sevenths(row.num_experts / row.moe_ep_size * 8, 3)
        if kind != "w4a16" and _library(row) != usual[row.moe_dtype]:
            name += f" by {_library(row)}"
        yield KernelSample(
            name + ("" if width >= NARROWEST else " under 128"), row.latency * 1e3, made,
            fitted and own and parts % 2 == 0 and width >= NARROWEST,
            (*key, held, row.num_experts, row.topk, row.distribution), row.num_tokens,
        )  # fmt: skip


@lru_cache(maxsize=2)
def _expert_rows(folder: Path) -> list[ExpertsRow]:
    """Of vLLM's table, and of SGLang's those of the type that is taken from it."""
    return [
        row
        for engine in ("vllm", _QUANTISED_BY)
        for row in _optional(folder, "moe", "moe_perf", ExpertsRow, engine)
        if (row.moe_dtype == _QUANTISED) == (engine == _QUANTISED_BY)
    ]


def _library(row: ExpertsRow) -> str:
    """Where the kernel comes from; vLLM takes others for some models."""
    known = ("marlin", "trtllm", "cutlass", "triton")
    return next((name for name in known if name in row.kernel_source), "another kernel")


def _usual(rows: list[ExpertsRow]) -> dict[str, str]:
    """The library of most rows of each type: the others' kernels are scored apart."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.moe_dtype, Counter())[_library(row)] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items()}


def _gated(row: ExpertsRow) -> bool:
    """The experts of NVIDIA's Nemotron 3 models (2,688 x 1,856, or 22 of 512 chosen) have no gate;
    the tables do not say so.
    """
    return not (row.topk == 22 or (row.hidden_size, row.inter_size) == (2688, 1856))


def _exponent(row: ExpertsRow, folder: Path) -> float:
    """Of the power law by which tokens are routed; 0 for evenly. Raises InputError for what is
    neither, and for routing that cannot be.
    """
    kind, _, exponent = row.distribution.rpartition("_")
    problem = ""
    if row.topk > row.num_experts:
        problem = f"topk {row.topk} is more than num_experts {row.num_experts}"
    elif row.moe_ep_size > row.num_experts:
        problem = f"moe_ep_size {row.moe_ep_size} is more than num_experts {row.num_experts}"
    elif row.distribution == "balanced":
        return 0.0
    else:
        try:
            value = float(exponent)
        except ValueError:
            value = 0.0
        if kind == "power_law" and 0.0 < value < 10.0 and value != 1.0:
            return value
        problem = f"distribution is {row.distribution!r:.40}, not balanced or power_law_1.2"
    hint = "Give a system's folder of aiconfigurator"
    raise InputError(problem, file=folder / "moe", hint=hint)

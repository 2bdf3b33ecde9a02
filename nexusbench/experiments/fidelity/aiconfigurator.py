"""Kernels measured for aiconfigurator (Apache-2.0): parquet tables of GEMM and attention, ms."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity import aiconfigurator_low as low
from nexusbench.experiments.fidelity import (
    collective_tables,
    latent_tables,
    sparse_tables,
    state_tables,
)
from nexusbench.experiments.fidelity.parquet_rows import rows_of
from nexusbench.experiments.fidelity.samples import KernelSample, KernelSamples
from nexusbench.experiments.fidelity.small_kv_tables import FAMILY, small_kv
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.precisions import kernels_of
from nexusbench.physics.windows import WindowedAttention

SYSTEMS = {
    "h200": "h200_sxm", "h100": "h100_sxm", "a100": "a100_sxm", "l40s": "l40s",
    "b200": "b200_sxm", "b300": "b300_sxm", "gb200": "gb200", "gb300": "gb300",
    "rtxpro6000": "rtx_pro_6000_server",
}  # fmt: skip
# Its vLLM collector goes round six weights of a product (collect_gemm.py, outside_loop_count), and
# repeats attention on one set of operands.
GEMM_COPIES, ATTENTION_COPIES = 6, 1
ATTENTION_TAKEN_OVER = ("b300", "gb200")  # from the B200
TAKEN_OVER = ("gb300",)  # everything but the link, from the B300
NOT_SMALL = ("a100",)  # whose fit took no small products in
KERNELS = ("flash_attn", "trtllm")  # of attention, by a part of their names
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


def read(
    folder: Path, gpu: GpuSpec, gpu_name: str, thin: int = 1, family: str = ""
) -> KernelSamples:
    """The kernels of a system's folder, every ``thin``-th row of each table; of ``family`` ("gemm",
    "attention", "gemm-fp8", "experts" ...) alone if it is given. Raises InputError if there are
    none.
    """
    fitted = gpu_name.lower() in SYSTEMS and gpu_name.lower() not in TAKEN_OVER
    samples = KernelSamples([])
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    small = fitted and gpu_name.lower() not in NOT_SMALL
    if family in ("", "gemm"):
        products = rows_of(folder, "gemm", "gemm_perf", GemmRow)[::thin]
        samples.samples += _gemm(products, gpu, bandwidth, fitted, small)
    if family in ("", "attention", "window", FAMILY):
        for kind in ("context", "generation"):
            rows = rows_of(folder, "attention", f"{kind}_attention_perf", AttentionRow)[::thin]
            own = fitted and gpu_name.lower() not in ATTENTION_TAKEN_OVER
            if family != FAMILY:
                samples.samples += _attention(rows, kind, gpu, bandwidth, own)
            if family in ("", FAMILY):
                fits = fitted and kernels_of(gpu).small_kv is not None
                samples.samples += small_kv(rows, kind, gpu, bandwidth, fits, ATTENTION_COPIES)
        samples.notes.append(
            "left out of attention: fp8 operands, heads above 256, and "
            "kernels other than FlashAttention 2 and 3 and TensorRT-LLM's in FlashInfer"
        )
    if family in ("", "mla"):
        own = fitted and kernels_of(gpu).latent is not None
        latent = latent_tables.read_latent(folder, gpu, own, thin)
        samples.samples += latent
        samples.notes += [latent_tables.LEFT_OUT] if latent else []
    if family in ("", *sparse_tables.KINDS):
        sparse = sparse_tables.read_sparse(folder, gpu, fitted, thin, family)
        samples.samples += sparse
        samples.notes += [sparse_tables.LEFT_OUT] if sparse else []
    if family in ("", *state_tables.KINDS):
        states = state_tables.read_states(folder, gpu, fitted, thin, family)
        samples.samples += states
        samples.notes += [state_tables.LEFT_OUT] if states else []
    if not family:
        collectives = collective_tables.read_collectives(folder, gpu, gpu_name)
        samples.samples += collectives[::thin]
        samples.notes += [collective_tables.LEFT_OUT] if collectives else []
    if not family or family.startswith("gemm-"):
        samples.samples += low.products(folder, gpu, fitted, thin, family)
        samples.samples += low.weight_only(folder, gpu, thin, family)
    if not family:
        samples.samples += low.quantisation(folder, gpu, fitted, thin)
    if not family or family.startswith("experts"):
        samples.samples += low.experts(folder, gpu, fitted, thin, family)
    samples.notes += low.NOTES
    return samples


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
            fitted and (large or small) and (low.sevenths(n, 7) + low.sevenths(k, 11)) % 2 == 0,
            (n, k),
            m,
        )


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
            or not any(kernel in row.kernel_source for kernel in KERNELS)
        ):
            continue
        layout, window = (heads, kv_heads, head_dim), row.window_size or 0
        one = layouts.get((*layout, window))
        if one is None:
            one = WindowedAttention(gpu, *layout, window) if window else Attention(gpu, *layout)
            layouts[*layout, window] = one
        batch, tokens = row.batch_size, row.isl
        before = row.step if kind == "generation" else 0
        # A prompt of one token is what vLLM runs as a decode.
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = one.time(
            chunks, decodes, decodes * (before + 1), gpu.num_sms, bandwidth, copies=ATTENTION_COPIES
        )
        group = "window" if window else "attention"
        name = f"{group} prefill" if kind == "context" else f"{group} decode"
        count = tokens if kind == "context" else before
        own = fitted and not (window and kernels_of(gpu).window is None)
        half = round(heads * 5 + kv_heads * 3 + head_dim / 64) * 7919 % 13 < 6.5
        curve = (*layout, window, batch)
        yield KernelSample(name, row.latency * 1e3, made.time / 1e3, own and half, curve, count)

"""Kernels measured for aiconfigurator (Apache-2.0): parquet tables of GEMM and attention, ms."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.devices._attention import Attention
from nexusbench.devices._gemm import Gemm
from nexusbench.experiments.fidelity.samples import Sample, Samples

SYSTEMS = {"h200": "h200_sxm", "h100": "h100_sxm", "a100": "a100_sxm", "l40s": "l40s"}
# Its vLLM collector goes round six weights of a product (collect_gemm.py, outside_loop_count), and
# repeats attention on one set of operands.
GEMM_COPIES, ATTENTION_COPIES = 6, 1
SMALL_FITTED = ("h200", "h100", "l40s")  # whose fit took small products in, too
SMALLEST = 1024  # N and K of the products that decoder layers have; smaller ones are scored apart


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


def read(folder: Path, gpu: GpuSpec, gpu_name: str, thin: int = 1) -> Samples:
    """The bf16 kernels of vLLM in a system's folder, every ``thin``-th row of them. Raises
    InputError if there are none.
    """
    fitted = gpu_name.lower() in SYSTEMS
    samples = Samples([])
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    small = gpu_name.lower() in SMALL_FITTED
    rows = _rows(folder, "gemm", "gemm_perf")[::thin]
    samples.samples += _gemm(rows, gpu, bandwidth, fitted, small)
    for kind in ("context", "generation"):
        rows = _rows(folder, "attention", f"{kind}_attention_perf")[::thin]
        samples.samples += _attention(rows, kind, gpu, bandwidth, fitted)
    samples.notes.append(
        "left out: fp8 operands or KV cache, sliding windows, heads above 256, and kernels other "
        "than FlashAttention 2 and 3"
    )
    return samples


@lru_cache
def _rows(folder: Path, family: str, name: str) -> list[dict[str, Any]]:
    """The newest vLLM table of a family, as dicts."""
    import pyarrow.parquet as pq

    paths = sorted(
        folder.glob(f"{family}/vllm/*/{name}.parquet"),
        key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdecimal()],
    )
    if not paths:
        raise InputError(
            f"holds no {family}/vllm/*/{name}.parquet", file=folder, hint="Give a system's folder"
        )
    rows: list[dict[str, Any]] = pq.read_table(paths[-1]).to_pylist()
    return rows


def _gemm(
    rows: list[dict[str, Any]], gpu: GpuSpec, bandwidth: float, fitted: bool, small: bool
) -> Iterator[Sample]:
    gemm = Gemm(gpu)
    for row in rows:
        if row["gemm_dtype"] != "bfloat16":
            continue
        m, n, k = row["m"], row["n"], row["k"]
        made = gemm.time(m, k, n, 2.0, 2.0, gpu.num_sms, bandwidth, copies=GEMM_COPIES)
        large = min(n, k) >= SMALLEST
        yield Sample(
            "gemm" if large else "gemm under 1024",
            row["latency"] * 1e3,
            made.time / 1e3,
            fitted and (large or small) and (_sevenths(n, 7) + _sevenths(k, 11)) % 2 == 0,
            (n, k),
            m,
        )


def _sevenths(size: int, parts: int) -> int:
    """A number that whole shapes are split by: log2 of ``size`` in ``parts``-ths."""
    return math.floor(math.log2(size) * parts)


def _attention(
    rows: list[dict[str, Any]], kind: str, gpu: GpuSpec, bandwidth: float, fitted: bool
) -> Iterator[Sample]:
    layouts: dict[tuple[int, int, int], Attention] = {}
    for row in rows:
        heads, kv_heads, head_dim = (
            row["num_heads"], row["num_key_value_heads"], row["head_dim"],
        )  # fmt: skip
        if (
            row["attn_dtype"] != "bfloat16"
            or row["kv_cache_dtype"] != "bfloat16"
            or row.get("window_size", 0)
            or head_dim > 256
            or "flash_attn" not in row["kernel_source"]
        ):
            continue
        layout = heads, kv_heads, head_dim
        one = layouts.get(layout)
        if one is None:
            one = layouts[layout] = Attention(gpu, *layout)
        batch, tokens = row["batch_size"], row["isl"]
        before = row["step"] if kind == "generation" else 0
        # A prompt of one token is what vLLM runs as a decode.
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = one.time(
            chunks, decodes, decodes * (before + 1), gpu.num_sms, bandwidth, copies=ATTENTION_COPIES
        )
        name = "attention prefill" if kind == "context" else "attention decode"
        count = tokens if kind == "context" else before
        half = round(heads * 5 + kv_heads * 3 + head_dim / 64) * 7919 % 13 < 6.5
        yield Sample(
            name, row["latency"] * 1e3, made.time / 1e3, fitted and half, (*layout, batch), count
        )

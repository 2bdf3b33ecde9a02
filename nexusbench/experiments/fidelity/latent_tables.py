"""Latent attention measured for aiconfigurator: vLLM's and TensorRT-LLM's whole attention module of
DeepSeek-V3.

The module is its products (by ``Gemm``) and its attention with all small kernels (by the classes of
``physics/latent.py``), one layer, bf16. vLLM's is launched kernel by kernel, as its times say that
agree over all GPUs but one, TensorRT-LLM's from a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.experiments.fidelity.typed_rows import (
    Count,
    Heads,
    Millis,
    Tokens,
    newest,
    read_rows,
)
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.latent import AbsorbedAttention, ExpandedAttention

PREFILL, DECODE, GRAPH_PREFILL, GRAPH_DECODE = (
    f"mla/{library}/*/mla_{phase}_module_perf.parquet"
    for library in ("vllm", "trtllm")
    for phase in ("context", "generation")
)
SHORT = 4096  # keys of a batch up to which the fixed time of its graph is fitted
ARCHITECTURE = "DeepseekV3ForCausalLM"
# Of DeepSeek-V3's config.json: hidden size, ranks of queries and of keys and values, and a head's
# parts without and with rotation and its value.
HIDDEN, Q_RANK, RANK, NOPE, ROPE, VALUE = 7168, 1536, 512, 128, 64, 128
_EXPANDED = ("FLASH_ATTN", "TRTLLM_RAGGED")  # kernels over expanded keys
_GRAPH = "default"  # what TensorRT-LLM calls its own
_KNOWN = (*_EXPANDED, "FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA", "FLASHINFER_MLA", _GRAPH)
_BF16 = 2.0
LEFT_OUT = (
    "mla: vLLM's whole attention module of DeepSeek-V3 with its products, bf16, and mla-graph: "
    "TensorRT-LLM's; left out: fp8 and nvfp4 products, fp8 KV caches, other architectures"
)


class ModuleRow(msgspec.Struct, frozen=True):
    """A measured module of one layer: ``isl`` tokens of each sequence; in a decode ``step`` keys
    with its own; ms.
    """

    kernel_source: str
    architecture: str
    mla_dtype: str
    kv_cache_dtype: str
    gemm_type: str
    num_heads: Heads
    batch_size: Heads
    isl: Count
    step: Tokens
    latency: Millis


def read_latent(folder: Path, gpu: GpuSpec, fitted: bool, thin: int = 1) -> list[KernelSample]:
    """The modules in a system's folder, every ``thin``-th row of the newest tables of either
    library, any of which may be missing. Raises InputError for a table that is broken.
    """
    modules = _Modules(gpu)
    samples: list[KernelSample] = []
    for name, pattern in (
        ("mla-prefill", PREFILL), ("mla-decode", DECODE),
        ("mla-graph-prefill", GRAPH_PREFILL), ("mla-graph-decode", GRAPH_DECODE),
    ):  # fmt: skip
        if (path := newest(folder, pattern)) is not None:
            rows = _rows(path)[::thin]
            samples += _samples(name, rows, modules, fitted)
    return samples


@lru_cache
def _rows(path: Path) -> list[ModuleRow]:
    return [
        row
        for row in read_rows(path, ModuleRow)
        if row.architecture == ARCHITECTURE
        and row.kernel_source in _KNOWN
        and row.gemm_type == row.mla_dtype == row.kv_cache_dtype == "bfloat16"
    ]


def _samples(
    name: str, rows: list[ModuleRow], modules: _Modules, fitted: bool
) -> Iterator[KernelSample]:
    """Halves are of whole numbers of heads, by their power of two. Of TensorRT-LLM's only what a
    graph's fixed time decides is fitted: its kernels are its own.
    """
    decode = name.endswith("decode")
    for row in rows:
        half = math.floor(math.log2(row.num_heads)) % 2 == 0
        if row.kernel_source == _GRAPH:
            half = half and row.batch_size * max(row.isl, row.step) <= SHORT
        yield KernelSample(
            name,
            row.latency * 1e3,
            modules.time(row, decode=decode) / 1e3,
            fitted and half,
            (row.num_heads, row.batch_size),
            row.step if decode else row.isl,
        )


class _Modules:
    """Times of modules of one layer on one GPU."""

    def __init__(self, gpu: GpuSpec) -> None:
        self._gpu, self._gemm = gpu, Gemm(gpu)
        self._bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
        self._products: dict[tuple[int, int, bool], float] = {}
        self._expanded: dict[tuple[int, bool], ExpandedAttention] = {}
        self._absorbed: dict[tuple[int, bool], AbsorbedAttention] = {}

    def time(self, row: ModuleRow, *, decode: bool) -> float:
        """Ns of one module."""
        heads, batch, tokens = row.num_heads, row.batch_size, row.isl
        before = max(0, row.step - 1) if decode else 0
        eager = row.kernel_source != _GRAPH
        expanded = row.kernel_source in _EXPANDED or not (eager or decode)
        attention = self._attention(heads, expanded=expanded, eager=eager)
        # A prompt of one token is what vLLM runs as a decode.
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = attention.time(
            chunks, decodes, decodes * (before + 1), self._gpu.num_sms, self._bandwidth, copies=1
        )
        return made.time + self._linear(heads, batch * tokens, expanded=expanded)

    def _attention(
        self, heads: int, *, expanded: bool, eager: bool
    ) -> ExpandedAttention | AbsorbedAttention:
        key = heads, eager
        if expanded:
            if key not in self._expanded:
                self._expanded[key] = ExpandedAttention(
                    self._gpu, heads, NOPE + ROPE, VALUE, eager=eager
                )
            return self._expanded[key]
        if key not in self._absorbed:
            self._absorbed[key] = AbsorbedAttention(self._gpu, heads, RANK, ROPE, eager=eager)
        return self._absorbed[key]

    def _linear(self, heads: int, tokens: int, *, expanded: bool) -> float:
        """Ns of the products: (inputs, outputs, heads apart)."""
        known = self._products.get((heads, tokens, expanded))
        if known is not None:
            return known
        products = [
            (HIDDEN, Q_RANK + RANK + ROPE, 1),
            (Q_RANK, heads * (NOPE + ROPE), 1),
            (heads * VALUE, HIDDEN, 1),
        ]
        if expanded:
            products.append((RANK, heads * (NOPE + VALUE), 1))
        else:
            products += [(NOPE, RANK, heads), (RANK, VALUE, heads)]
        weights = sum(inputs * outputs * groups for inputs, outputs, groups in products)
        taken = 0.0
        for inputs, outputs, groups in products:
            # The benchmark repeats the module: L2 holds what all of its weights leave room for.
            copies = -(-weights // (inputs * outputs * groups))
            taken += self._gemm.time(
                tokens, inputs, outputs, _BF16, _BF16, self._gpu.num_sms, self._bandwidth,
                copies=copies, groups=groups,
            ).time  # fmt: skip
        self._products[heads, tokens, expanded] = taken
        return taken

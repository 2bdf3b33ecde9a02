"""Sparse attention measured for aiconfigurator: vLLM's whole attention modules of DeepSeek-V3.2 and
GLM-5 (``dsa``), MiniMax-M3 (``msa``) and DeepSeek-V4 (``csa`` with an indexer, ``hca`` without).

A module is its products (by ``Gemm``, of DeepSeek-V4 by ``ScaledGemm``) and its attention with
indexer and all small kernels (by ``physics/sparse.py`` and ``compressed.py``), one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
)
from nexusbench.core.specs import GpuSpec, Linear
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.experiments.fidelity.typed_rows import (
    Count,
    Heads,
    Millis,
    Tokens,
    newest,
    read_rows,
)
from nexusbench.physics.compressed import EntryAttention
from nexusbench.physics.gemm import Gemm, Quantise, ScaledGemm
from nexusbench.physics.latent_products import EXPANSION, fused
from nexusbench.physics.precisions import (
    kernels_of,
    product_constants,
    product_kernel,
    quantise_constants,
)
from nexusbench.physics.sparse import PickedAttention

# A table's first word, the kind of its constants, its folder, and the type of its products.
_TABLES = {
    "dsa": ("latent", "sparse_attention/vllm/*/dsa", "bfloat16"),
    "msa": ("grouped", "msa/vllm/*/msa", "bfloat16"),
    "csa": ("picks", "sparse_attention/vllm/*/dsv4_csa", "fp8_block"),
    "hca": ("entries", "sparse_attention/vllm/*/dsv4_hca", "fp8_block"),
}
KINDS = {name: kind for name, (kind, _, _) in _TABLES.items()}
DEEPSEEK, GLM, MINIMAX, DEEPSEEK4 = (
    "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "MiniMaxM3ForCausalLM",
    "DeepseekV4ForCausalLM",
)  # fmt: skip
_GROUP = 16  # query heads to a head of keys of MiniMax-M3
_HALF, _BYTE = 2.0, 1.0
# Prompts of dsa of fewer tokens together took as long as the host launched their kernels, whatever
# they were; of so many and more FlashInfer's on a B200 were measured faster than of half as many.
LEAST_TOKENS, MOST_TOKENS = 4096, 65536
LEFT_OUT = (
    "dsa, msa, csa, hca: vLLM's whole attention modules with their products, those of dsa and msa "
    f"in 16 bit; left out: prompts of dsa of fewer than {LEAST_TOKENS:,} tokens together, which "
    f"the host launched more slowly than they computed, and of {MOST_TOKENS:,} and more"
)

_Mixer = SparseAttention | CompressedAttention


class SparseRow(msgspec.Struct, frozen=True):
    """A measured module of one layer: ``num_heads`` heads on each of ``tp_size`` GPUs, ``isl``
    tokens of each sequence after ``step`` ones, in a decode ``step`` keys with its own; ms.
    """

    architecture: str
    mla_dtype: str
    kv_cache_dtype: str
    gemm_type: str
    num_heads: Heads
    tp_size: Heads
    batch_size: Heads
    isl: Count
    step: Tokens
    latency: Millis


def layer_of(name: str, row: SparseRow) -> tuple[_Mixer, int]:
    """The layer and its hidden size, as in the model's config.json but for the number of heads."""
    heads = row.num_heads * row.tp_size
    if row.architecture == DEEPSEEK4:
        pro = heads > 64
        indexer = {"topk": 1024 if pro else 512, "index_heads": 64, "index_dim": 128}
        return CompressedAttention(
            num_heads=heads, head_dim=512, q_rank=1536 if pro else 1024, groups=16 if pro else 8,
            out_rank=1024, window=128, ratio=4 if name == "csa" else 128,
            **(indexer if name == "csa" else {}),
        ), 7168 if pro else 4096  # fmt: skip
    if row.architecture == MINIMAX:
        groups = -(-heads // _GROUP)
        grouped = FullAttention(num_heads=heads, num_kv_heads=groups, head_dim=128)
        return SparseAttention(
            base=grouped, topk=2048, index_heads=groups, index_dim=128, index_inputs=6144,
            index_weights=False, block=128, index_dtype="bfloat16",
        ), 6144  # fmt: skip
    deepseek = row.architecture == DEEPSEEK
    q_rank = 1536 if deepseek else 2048
    latent = LatentAttention(
        num_heads=heads, q_rank=q_rank, kv_rank=512, nope_dim=128 if deepseek else 192,
        rope_dim=64, value_dim=128 if deepseek else 256,
    )  # fmt: skip
    return SparseAttention(
        base=latent, topk=2048, index_heads=64 if deepseek else 32, index_dim=128,
        index_inputs=q_rank,
    ), 7168 if deepseek else 6144  # fmt: skip


def read_sparse(
    folder: Path, gpu: GpuSpec, fitted: bool, thin: int = 1, family: str = ""
) -> list[KernelSample]:
    """The modules in a system's folder, every ``thin``-th row of the newest tables of vLLM, any of
    which may be missing; ``family``: a key of KINDS alone. Halves are of whole numbers of heads, by
    their power of two. Raises InputError for a table that is broken.
    """
    samples: list[KernelSample] = []
    for name, (kind, pattern, products) in _TABLES.items():
        if family not in ("", name):
            continue
        own = fitted and kind in kernels_of(gpu).sparse
        modules = SparseModules(gpu, name, products)
        for phase in ("context", "generation"):
            path = newest(folder, f"{pattern}_{phase}_module_perf.parquet")
            if path is not None:
                samples += _samples(name, phase, _rows(path, products)[::thin], modules, own)
    return samples


@lru_cache
def _rows(path: Path, products: str) -> list[SparseRow]:
    known = (DEEPSEEK, GLM, MINIMAX, DEEPSEEK4)
    return [
        row
        for row in read_rows(path, SparseRow)
        if row.architecture in known
        and row.gemm_type == products
        and row.mla_dtype == "bfloat16"
        and row.kv_cache_dtype in ("bfloat16", "fp8")
    ]


def _samples(
    name: str, phase: str, rows: list[SparseRow], modules: SparseModules, fitted: bool
) -> Iterator[KernelSample]:
    decode = phase == "generation"
    for row in rows:
        tokens = row.batch_size * row.isl
        if name == "dsa" and not decode and not LEAST_TOKENS <= tokens < MOST_TOKENS:
            continue
        half = math.floor(math.log2(row.num_heads)) % 2 == 0
        heads = row.num_heads, row.tp_size
        yield KernelSample(
            f"{name}-{'decode' if decode else 'prefill'}",
            row.latency * 1e3,
            modules.time(row, decode=decode) / 1e3,
            fitted and half,
            (row.architecture, *heads, row.kv_cache_dtype, row.batch_size),
            row.step if decode else row.isl,
        )


class SparseModules:
    """Times of modules of one layer on one GPU, of the table ``name``, whose products have weights
    of the type ``products``.
    """

    def __init__(self, gpu: GpuSpec, name: str, products: str) -> None:
        self._gpu, self._name, self._gemm = gpu, name, Gemm(gpu)
        self._bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
        self._scaled: tuple[ScaledGemm, Quantise] | None = None
        kernel = product_kernel(gpu, products)
        self._weight_bytes = _HALF if products == "bfloat16" else _BYTE
        if kernel.scales:
            constants = product_constants(gpu, kernel.kind)
            self._scaled = (
                ScaledGemm(gpu, constants, _BYTE, kernel.activation_bytes),
                Quantise(gpu, quantise_constants(gpu), kernel.scales),
            )
        self._attention: dict[tuple[object, ...], PickedAttention | EntryAttention] = {}
        self._products: dict[tuple[object, ...], float] = {}

    def time(self, row: SparseRow, *, decode: bool) -> float:
        """Ns of one module."""
        layer = row.architecture, row.num_heads, row.tp_size
        whole, hidden = layer_of(self._name, row)
        mixer = whole.shard(row.tp_size)
        kept = _BYTE if row.kv_cache_dtype == "fp8" else _HALF
        if (*layer, kept) not in self._attention:
            self._attention[*layer, kept] = (
                PickedAttention(self._gpu, mixer, kept, eager=True)
                if isinstance(mixer, SparseAttention)
                else EntryAttention(self._gpu, mixer, kept)
            )
        batch, tokens, before = row.batch_size, row.isl, row.step
        if decode:
            before = max(0, before - 1)
        # A prompt of one token is what vLLM runs as a decode.
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = self._attention[*layer, kept].time(
            chunks, decodes, decodes * (before + 1), self._gpu.num_sms, self._bandwidth, copies=1
        )
        key = *layer, batch * tokens
        if key not in self._products:
            self._products[key] = self._linear(_products(mixer, hidden), batch * tokens)
        return made.time + self._products[key]

    def _linear(self, products: list[tuple[str, int, int, int]], tokens: int) -> float:
        """Ns of the products of ``tokens`` tokens."""
        weights = sum(inputs * outputs * groups for _, inputs, outputs, groups in products)
        sms, bandwidth, taken = self._gpu.num_sms, self._bandwidth, 0.0
        for name, inputs, outputs, groups in products:
            # The benchmark repeats the module: L2 holds what all of its weights leave room for.
            copies = -(-weights // (inputs * outputs * groups))
            if self._scaled is None:
                taken += self._gemm.time(
                    tokens, inputs, outputs, self._weight_bytes, _HALF, sms, bandwidth,
                    copies=copies, groups=groups,
                ).time  # fmt: skip
                continue
            scaled, quantise = self._scaled
            taken += scaled.time(tokens, inputs, outputs, sms, bandwidth, copies=copies).time
            if name == "attn_out":
                taken += quantise.time(tokens, inputs, sms, bandwidth).time
        return taken


def _products(mixer: _Mixer, hidden: int) -> list[tuple[str, int, int, int]]:
    """(name, inputs, outputs, how many of them) of one GPU's products, those of latent keys and
    values absorbed.
    """
    made: list[tuple[str, int, int, int]] = []
    linears = [Linear(one.name, one.inputs, one.outputs, 1) for one in mixer.projections(hidden)]
    for one in fused(linears):
        if one.name == EXPANSION and isinstance(mixer, SparseAttention):
            base = mixer.base
            assert isinstance(base, LatentAttention)
            made.append(("absorbed keys", base.nope_dim, base.kv_rank, base.num_heads))
            made.append(("absorbed values", base.kv_rank, base.value_dim, base.num_heads))
        else:
            made.append((one.name, one.inputs, one.outputs, 1))
    return made

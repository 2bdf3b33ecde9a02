"""Attention to the tokens that an indexer picks: DSA over latent attention (DeepSeek-V3.2, arXiv
2512.02556, section 2.1), and blocks of grouped-query attention (MiniMax-M3).

Latent attention is absorbed, in prompts too: all heads read the latent keys that were picked. A
layer that reuses the picks of an earlier one has neither scores nor a choice. Fixed times and those
of a token are of all small kernels of a layer: norms, rotation, quantisation of index queries, the
writes to both caches, indices of the cache. Its products are not in here.

Kernels: FlashMLA's sparse ones have tiles of 64 heads and 16-bit keys in prompts; a decode over an
8-bit cache splits a token's keys, over a 16-bit one it does not. On Blackwell tiles are of 128
heads on two SMs. vLLM runs prompts of few heads over an 8-bit cache through the decode's kernel,
and so do its Triton kernels for blocks.
"""

from __future__ import annotations

from nexusbench.core.kernel_constants import SparseConstants
from nexusbench.core.mixer_work import mean_keys
from nexusbench.core.mixers import LatentAttention, SparseAttention
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.operators import L2, NOTHING, OperatorClass, scaled_sum
from nexusbench.physics.precisions import architecture, sparse_constants
from nexusbench.physics.selection import (
    Choice,
    Gathered,
    IndexScores,
    SmallKernels,
    causal,
)

HEADS, PAIR_HEADS, LEAST_ROWS = 64, 128, 16  # of a tile: FlashMLA; on Blackwell; tensor cores
CONVERTED = 32  # query heads from which on vLLM converts an 8-bit cache to 16 bit for prompts
# Of a layer's small kernels, the indexer's part. Without one the fixed time of SGLang 0.5.14's
# decode modules is 10 of 28 us less on an H200, 14 of 19 to 28 on a B200 (GLM-5.2 and GLM-5).
INDEX_SHARE = 0.45
_WIDE = 2.0  # bytes of a value of a 16-bit cache

_Chunks = tuple[tuple[int, int], ...]


class PickedAttention:
    """Times of ``layers`` layers of ``mixer``, one GPU's part of it. ``kv_bytes`` and
    ``activation_bytes`` are those of one value; ``eager``: kernels wait for their launches, one by
    one.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        mixer: SparseAttention,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
        *,
        eager: bool = False,
    ) -> None:
        base = mixer.base
        heads, index_heads = base.num_heads, mixer.index_heads
        self._padded = isinstance(base, LatentAttention)
        own = sparse_constants(gpu, "latent" if self._padded else "grouped")
        if isinstance(base, LatentAttention):
            self._gathered = _latent(gpu, own, base, heads, kv_bytes)
            wide, values = heads * (2 * base.kv_rank + base.rope_dim), base.kv_values
        else:
            groups, size = base.num_kv_heads, base.head_dim + base.value_size
            self._gathered = Gathered(
                gpu, own, heads=heads, rows=max(LEAST_ROWS, heads // groups), groups=groups,
                row_flops=2.0 * size, key_bytes=size * kv_bytes, narrow=kv_bytes < _WIDE,
                narrow_chunks=kv_bytes < _WIDE and architecture(gpu) != "blackwell",
            )  # fmt: skip
            wide, values = heads * size, float(groups * size)
        self._scores: IndexScores | None = None
        indexed = 0.0
        if not mixer.reuses:
            indexed = index_heads * mixer.index_bytes + mixer.index_bytes
            self._scores = IndexScores(
                gpu, own, index_heads, mixer.index_dim, mixer.index_bytes,
                narrow=mixer.index_dtype == "fp8",
            )  # fmt: skip
        self._topk, self._block = float(mixer.topk), mixer.block
        self._choice = Choice(gpu, own, self._topk / self._block)
        self._key_bytes, self._index_bytes = values * kv_bytes, mixer.index_bytes
        self._new_bytes = own.passes * (wide * activation_bytes + indexed)
        self._new_bytes += values * (activation_bytes + kv_bytes)
        waiting = own.launch_us if eager or own.graph_us is None else own.graph_us
        share = 1.0 - INDEX_SHARE if mixer.reuses else 1.0
        self._small = SmallKernels(gpu, own, self._new_bytes, layers, waiting, share)
        self._l2 = L2(gpu)

    def time(
        self,
        chunks: _Chunks,
        num_decodes: int,
        decode_context: int,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
    ) -> OperatorClass:
        """As ``Attention.time``: all layers on ``sms`` SMs, in ns. Decodes are taken to be of equal
        length.
        """
        tokens = num_decodes
        for count, _ in chunks:
            tokens += count
        if not tokens:
            return NOTHING
        topk, context = self._topk, decode_context / max(1, num_decodes)
        parts: list[tuple[int, float, float, float]] = []
        different = num_decodes * min(context, topk)
        for count, before in chunks:
            mean, last = mean_keys(before + 1, before + count, topk), before + count
            kept = min(float(last), count * topk)
            parts.append((count, topk if self._padded else mean, mean, kept))
            different += kept
        per_byte = 1.0 / bandwidth
        if copies:
            new = tokens * self._new_bytes
            seen = new + different * self._key_bytes + decode_context * self._index_bytes
            per_byte = self._l2.per_byte(copies * seen, sms, per_byte)
        keys = min(context, topk)
        made = self._gathered.time(
            parts, num_decodes, keys, topk if self._padded else keys, sms, per_byte
        )
        if self._scores is not None:
            index = self._scores.time(causal(chunks), num_decodes, decode_context, sms, per_byte)
            made = scaled_sum(index, 1.0, made)
            blocks, each = causal(chunks, self._block), context / self._block
            chosen = self._choice.time(blocks, num_decodes, each, sms, per_byte)
            made = scaled_sum(chosen, 1.0, made)
        return self._small.after(made, tokens, bool(chunks), sms, per_byte)


def _latent(
    gpu: GpuSpec, own: SparseConstants, base: LatentAttention, heads: int, kv_bytes: float
) -> Gathered:
    """Attention of ``heads`` heads to chosen latents."""
    narrow, pair = kv_bytes < _WIDE, architecture(gpu) == "blackwell"
    return Gathered(
        gpu, own, heads=heads, rows=PAIR_HEADS if pair else HEADS, span=2 if pair else 1,
        row_flops=2.0 * (2 * base.kv_rank + base.rope_dim), key_bytes=base.kv_values * kv_bytes,
        narrow=narrow, narrow_chunks=narrow and heads < CONVERTED and not pair,
        splits=narrow or pair,
    )  # fmt: skip

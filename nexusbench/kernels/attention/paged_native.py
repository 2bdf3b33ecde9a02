"""Attention on a CPU with native kernels: decodes read their pages in place, chunks go to SDPA."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nexusbench.kernels import fused
from nexusbench.kernels.attention.base import AttentionBackend, PagedDecodes, PreparedAttention
from nexusbench.kernels.attention.sdpa import Part, PreparedParts, SdpaAttention
from nexusbench.kernels.native import bindings
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan, Ints, query_tiles


def decodes_fit(kv: PagedKV) -> bool:
    """Whether this machine has native kernels for decodes over this cache."""
    layer, heads = kv.layers[0], kv.heads
    known = layer.tensor.dtype in (torch.bfloat16, torch.float32) and not heads.latent_dim
    on_cpu = layer.tensor.device.type == "cpu"
    return known and on_cpu and bindings.functions() is not None


class NativeAttention(SdpaAttention):
    """Nothing is gathered, padded or masked for decodes, and a decode's bits do not depend on the
    rest of its batch. Without native kernels the same is computed slowly, for tests.
    """

    def __init__(self, kv: PagedKV) -> None:
        super().__init__(kv)
        self.padded_tokens = AttentionBackend.padded_tokens
        self._tiles = fused.attends_chunks(self.dtype, self.heads.head_dim)

    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Block tables of the decodes; index tensors and masks of chunks with context."""
        count = plan.num_decodes
        decodes = PagedDecodes(_int32(plan.blocks[:count]), _int32(plan.lengths[:count]))
        paged = _Paged(0, count, decodes, self.heads)
        if not plan.chunks:
            return _NativeDecodes([paged], self.heads)
        if self._tiles:
            parts: list[Part] = [paged] if count else []
            return PreparedParts([*parts, self._paged_chunks(plan)], self.heads)
        with torch.inference_mode():
            gathers = [group.blocks.size for group in plan.chunks if group.context]
            chunks = self.chunks(plan, self.room(max(gathers, default=0)))
        return PreparedParts([paged, *chunks] if count else chunks, self.heads)

    def _paged_chunks(self, plan: AttentionPlan) -> _PagedChunks:
        first, start = plan.num_decodes, int(plan.query_starts[plan.num_decodes])
        starts = plan.query_starts[first:] - start
        sequence, row = query_tiles(starts, fused.CHUNK_TOKENS)
        return _PagedChunks(
            start,
            plan.num_tokens,
            torch.from_numpy(starts),
            PagedDecodes(_int32(plan.blocks[first:]), _int32(plan.lengths[first:])),
            (torch.from_numpy(sequence), torch.from_numpy(row)),
            self.heads,
        )


class _NativeDecodes(PreparedParts):
    """A step of decodes alone."""

    def __init__(self, parts: list[_Paged], heads: HeadShape) -> None:
        super().__init__(parts, heads)
        self.paged = parts[0].decodes


@dataclass(frozen=True, slots=True)
class _Paged(Part):
    """The decodes of a step."""

    decodes: PagedDecodes
    heads: HeadShape

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        query = qkv[self.start : self.stop, : self.heads.query_size]
        tables, lengths = self.decodes.tables, self.decodes.lengths
        scale = 1 / math.sqrt(self.heads.head_dim)
        return fused.decode_attention(query, layer.keys, layer.values, tables, lengths, scale)


@dataclass(frozen=True, slots=True)
class _PagedChunks(Part):
    """All chunks of a step; ``starts`` count from row ``start``."""

    starts: torch.Tensor
    paged: PagedDecodes
    tiles: tuple[torch.Tensor, torch.Tensor]
    heads: HeadShape

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        query, paged = qkv[self.start : self.stop, : self.heads.query_size], self.paged
        return fused.chunk_attention(
            query,
            layer.keys,
            layer.values,
            self.starts,
            paged.tables,
            paged.lengths,
            self.tiles,
            1 / math.sqrt(self.heads.head_dim),
        )


def _int32(values: Ints) -> torch.Tensor:
    return torch.from_numpy(values.astype("int32"))

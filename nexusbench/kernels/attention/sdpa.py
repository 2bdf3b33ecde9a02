"""Attention by torch's scaled_dot_product_attention: any device, and the fastest path on a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from nexusbench.kernels.attention.base import AttentionBackend, PreparedAttention
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.planner import (
    PADDED_TOKENS,
    AttentionPlan,
    ChunkGroup,
    DecodeBucket,
)


@dataclass(frozen=True, slots=True)
class Part(ABC):
    """Attention of the rows ``start:stop`` of a batch."""

    start: int
    stop: int

    @abstractmethod
    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        """All rows' ``qkv`` -> [stop - start, heads x head_dim]."""


class SdpaAttention(AttentionBackend):
    """Gathers KV blocks into scratch memory, block by block, and calls fused SDPA on views of it.

    Decodes are batched over like lengths; the query heads of a KV group are folded into the query
    length, which makes one matrix of them (13 times faster than ``enable_gqa`` in bf16). Chunks
    without context read the projection's output and no cache; chunks with context are masked.
    """

    def __init__(self, kv: PagedKV) -> None:
        super().__init__(kv)
        # The measured 512 tokens are for 2 heads of 64 values; the cost is in the values.
        self.padded_tokens = max(self.block_size, PADDED_TOKENS * 256 // self.heads.kv_size)
        self._scratch = torch.empty(0, dtype=self.dtype, device=self.device)

    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Index tensors, masks and views of the scratch memory."""
        with torch.inference_mode():
            gathers = [bucket.blocks.size for bucket in plan.decodes]
            gathers += [group.blocks.size for group in plan.chunks if group.context]
            scratch = self.room(max(gathers, default=0))
            parts: list[Part] = [self._decodes(bucket, scratch) for bucket in plan.decodes]
            parts += self.chunks(plan, scratch)
        return PreparedParts(parts, self.heads)

    def chunks(self, plan: AttentionPlan, scratch: torch.Tensor) -> list[Part]:
        """The parts of ``plan`` that compute more than one token for a sequence."""
        return [
            self._chunk(group, scratch)
            if group.context
            else _PromptPart(group.start, group.stop, group.count, self.heads)
            for group in plan.chunks
        ]

    def room(self, num_blocks: int) -> torch.Tensor:
        """[num_blocks, values of a block]; larger calls replace the memory, none shrinks it."""
        values = self.block_size * self.heads.kv_size
        if num_blocks * values > self._scratch.numel():
            self._scratch = torch.empty(num_blocks * values, dtype=self.dtype, device=self.device)
        return self._scratch[: num_blocks * values].view(num_blocks, values)

    def _decodes(self, bucket: DecodeBucket, scratch: torch.Tensor) -> _DecodePart:
        count, width = bucket.blocks.shape
        tokens = width * self.block_size
        room = scratch[: count * width]
        keys, values = _keys_values(room, count, tokens, self.heads)
        lengths = torch.from_numpy(bucket.lengths).to(self.device)
        beyond = torch.arange(tokens, device=self.device) >= lengths.unsqueeze(1)
        mask = torch.zeros(count, tokens, dtype=self.dtype, device=self.device)
        mask.masked_fill_(beyond, float("-inf"))
        return _DecodePart(
            bucket.start,
            bucket.stop,
            torch.from_numpy(bucket.blocks.reshape(-1)).to(self.device),
            room,
            keys,
            values,
            mask.view(count, 1, 1, tokens),
            self.heads,
        )

    def _chunk(self, group: ChunkGroup, scratch: torch.Tensor) -> _ChunkPart:
        heads, width = self.heads, len(group.blocks)
        room = scratch[:width]
        length = group.context + group.num_tokens
        keys, values = _keys_values(room, 1, width * self.block_size, heads)
        spread = (heads.num_kv_heads, heads.group, length, heads.head_dim)
        mask = torch.full(
            (group.num_tokens, length), float("-inf"), dtype=self.dtype, device=self.device
        ).triu_(group.context + 1)
        return _ChunkPart(
            group.start,
            group.stop,
            torch.from_numpy(group.blocks).to(self.device),
            room,
            keys[0, :, None, :length].expand(spread),
            values[0, :, None, :length].expand(spread),
            mask,
            heads,
        )


def _keys_values(
    room: torch.Tensor, count: int, tokens: int, heads: HeadShape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of gathered blocks: keys and values, each [count, KV heads, tokens, head_dim]."""
    both = room.view(count, tokens, 2, heads.num_kv_heads, heads.head_dim)
    return both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _DecodePart(Part):
    """A bucket of decodes; ``keys`` and ``values`` view ``room``."""

    blocks: torch.Tensor
    room: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    heads: HeadShape

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        heads = self.heads
        torch.index_select(layer.blocks, 0, self.blocks, out=self.room)
        query = qkv[self.start : self.stop, : heads.query_size].view(
            -1, heads.num_kv_heads, heads.group, heads.head_dim
        )
        out = scaled_dot_product_attention(query, self.keys, self.values, attn_mask=self.mask)
        return out.reshape(-1, heads.query_size)


@dataclass(frozen=True, slots=True)
class _ChunkPart(Part):
    """One chunk with context: KV heads as batch, a group's query heads as heads, keys spread."""

    blocks: torch.Tensor
    room: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    heads: HeadShape

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        heads = self.heads
        torch.index_select(layer.blocks, 0, self.blocks, out=self.room)
        query = qkv[self.start : self.stop, : heads.query_size].view(
            -1, heads.num_kv_heads, heads.group, heads.head_dim
        )
        out = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3), self.keys, self.values, attn_mask=self.mask
        )
        return out.permute(2, 0, 1, 3).reshape(-1, heads.query_size)


@dataclass(frozen=True, slots=True)
class _PromptPart(Part):
    """Chunks of equal size without context: plain causal attention on the projection's output."""

    count: int
    heads: HeadShape

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        heads = self.heads
        rows = qkv[self.start : self.stop].view(
            self.count, -1, qkv.shape[1] // heads.head_dim, heads.head_dim
        )
        rows = rows.transpose(1, 2)
        keys_end = heads.num_heads + heads.num_kv_heads
        query, keys = rows[:, : heads.num_heads], rows[:, heads.num_heads : keys_end]
        values = rows[:, keys_end:]
        out = scaled_dot_product_attention(
            query, keys, values, is_causal=True, enable_gqa=heads.group > 1
        )
        return out.transpose(1, 2).reshape(-1, heads.query_size)


class PreparedParts(PreparedAttention):
    """A step's attention as parts that follow one another."""

    def __init__(self, parts: Sequence[Part], heads: HeadShape) -> None:
        self._parts, self._heads = parts, heads

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        """As :meth:`PreparedAttention.run`."""
        if len(self._parts) == 1:
            return self._parts[0].run(qkv, layer)
        out = torch.empty(len(qkv), self._heads.query_size, dtype=qkv.dtype, device=qkv.device)
        for part in self._parts:
            out[part.start : part.stop] = part.run(qkv, layer)
        return out

"""Attention by each layer's own rule, in torch's operators: windows, caps, sinks, latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nexusbench.kernels.attention.base import AttentionBackend, PreparedAttention
from nexusbench.kernels.attention.rules import AttentionRule
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV, keys_values
from nexusbench.kernels.planner import PADDED_TOKENS, AttentionPlan, ChunkGroup, DecodeBucket, Ints

TILE = 128  # query rows whose scores are in memory at a time


class RuledAttention(AttentionBackend):
    """What no fused operator of torch computes, written out: scores, softmax and their product with
    the values, in tiles of query rows. A layer with a window reads no blocks before it.
    """

    def __init__(self, kv: PagedKV) -> None:
        super().__init__(kv)
        self.padded_tokens = max(self.block_size, PADDED_TOKENS * 256 // self.heads.kv_size)
        self._windows = sorted({layer.rule.window for layer in kv.layers})

    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Blocks and masks for every window."""
        with torch.inference_mode():
            parts = {window: self._parts(plan, window) for window in self._windows}
        return _RuledStep(parts, self.heads)

    def _parts(self, plan: AttentionPlan, window: int) -> list[_RuledPart]:
        parts = [self._decodes(bucket, window) for bucket in plan.decodes]
        for group in plan.chunks:
            parts += self._chunk(group, window)
        return parts

    def _decodes(self, bucket: DecodeBucket, window: int) -> _RuledPart:
        size, (count, width) = self.block_size, bucket.blocks.shape
        first = np.zeros(count, dtype=np.int64)
        if window:
            first = np.maximum(bucket.lengths - window, 0) // size
            width = min(width, -(-window // size) + 1)
        places = np.minimum(first[:, None] + np.arange(width), bucket.blocks.shape[1] - 1)
        keys = (first[:, None] * size + np.arange(width * size))[:, None, :]
        hidden = _hidden(bucket.lengths[:, None, None] - 1, keys, window)
        blocks = np.take_along_axis(bucket.blocks, places, axis=1)
        # A table that ends before the window does: what is read twice is hidden.
        beyond = first[:, None] + np.arange(width) >= bucket.blocks.shape[1]
        hidden |= beyond.repeat(size, axis=1)[:, None, :]
        return _RuledPart(bucket.start, bucket.stop, self._on(blocks), self._on(hidden))

    def _chunk(self, group: ChunkGroup, window: int) -> list[_RuledPart]:
        """Tiles of one chunk with context, or of equal ones without."""
        size, parts = self.block_size, []
        for row in range(0, group.num_tokens, TILE):
            stop = min(row + TILE, group.num_tokens)
            end = group.context + stop
            first = max(group.context + row - window + 1, 0) if window else 0
            if not group.context:
                places, keys = np.arange(row, stop), np.arange(first, end)
                hidden = self._on(_hidden(places[:, None], keys[None, :], window)[None])
                for at in range(group.start, group.stop, group.num_tokens):
                    rows = slice(at + first, at + end)
                    parts.append(_RuledPart(at + row, at + stop, rows, hidden))
                continue
            first = first // size * size
            blocks = group.blocks[first // size : -(-end // size)]
            places = group.context + np.arange(row, stop)
            keys = first + np.arange(len(blocks) * size)
            hidden = self._on(_hidden(places[:, None], keys[None, :], window)[None])
            start = group.start + row
            parts.append(_RuledPart(start, group.start + stop, self._on(blocks[None]), hidden))
        return parts

    def _on(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _hidden(places: Ints, keys: Ints, window: int) -> np.ndarray:
    """Whether a key is not seen from a place: later than it, or before its window."""
    hidden = keys > places
    return hidden | (keys <= places - window) if window else hidden


@dataclass(frozen=True, slots=True)
class _RuledPart:
    """The rows ``start:stop``: of B sequences, each with the keys of a row of blocks [B, width], or
    of one whose keys are those of some rows of the step. ``hidden`` [B, queries, keys].
    """

    start: int
    stop: int
    keys: torch.Tensor | slice
    hidden: torch.Tensor

    def run(self, qkv: torch.Tensor, layer: LayerKV, heads: HeadShape) -> torch.Tensor:
        """[stop - start, heads x value size]."""
        query = qkv[self.start : self.stop, : heads.query_size]
        kinds = 1 if heads.latent_dim else 2
        if isinstance(self.keys, slice):
            kept = qkv[self.keys, heads.query_size :].unsqueeze(0)
        else:
            count, width = self.keys.shape
            kept = layer.blocks.index_select(0, self.keys.flatten())
            kept = kept.view(count, width * layer.tensor.shape[1], heads.kv_size)
        shape = (*kept.shape[:2], kinds, heads.num_kv_heads, heads.head_dim)
        keys, values = keys_values(kept.reshape(shape), heads.latent_dim)
        query = query.view(len(kept), -1, heads.num_heads, heads.head_dim)
        return attend(query, keys, values, self.hidden, layer.rule)


class _RuledStep(PreparedAttention):
    """A step's parts for each window."""

    def __init__(self, parts: dict[int, list[_RuledPart]], heads: HeadShape) -> None:
        self._parts, self._heads = parts, heads

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        """As :meth:`PreparedAttention.run`, by the layer's rule."""
        parts: Sequence[_RuledPart] = self._parts[layer.rule.window]
        if len(parts) == 1:
            return parts[0].run(qkv, layer, self._heads)
        width = self._heads.output_size
        out = torch.empty(len(qkv), width, dtype=qkv.dtype, device=qkv.device)
        for part in parts:
            out[part.start : part.stop] = part.run(qkv, layer, self._heads)
        return out


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    rule: AttentionRule,
) -> torch.Tensor:
    """Queries [B, n, heads, D] over keys [B, L, KV heads, D] and values [B, L, KV heads, V], less
    the ``hidden`` [B, n, L] ones -> [B x n, heads x V].

    Scores and softmax in fp32.
    """
    (B, n, heads, D), kv_heads = query.shape, keys.shape[2]
    rows = query.view(B, n, kv_heads, -1, D).permute(0, 2, 3, 1, 4).reshape(B, kv_heads, -1, D)
    # Not in 16 bits: a score of 30 would be rounded by 0.1.
    scores = rows.float() @ keys.permute(0, 2, 3, 1).float()
    scores = scores.mul_(rule.scale).view(B, kv_heads, -1, n, keys.shape[1])
    if rule.soft_cap:
        scores = scores.div_(rule.soft_cap).tanh_().mul_(rule.soft_cap)
    scores.masked_fill_(hidden[:, None, None], float("-inf"))
    if rule.sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        sinks = rule.sinks.view(1, kv_heads, -1, 1, 1)
        sinks = sinks.expand(B, -1, -1, n, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    weights = weights.reshape(B, kv_heads, -1, keys.shape[1]).to(values.dtype)
    out = weights @ values.permute(0, 2, 1, 3)
    return out.view(B, heads, n, -1).transpose(1, 2).reshape(B * n, -1)

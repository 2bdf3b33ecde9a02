"""Triton: paged prefill attention over chunks of any lengths, causal, with prior context.

FlashAttention-2's loop (arXiv 2307.08691) over keys that lie in KV blocks. Programs take tiles of
query rows in turn from a list, so that the grid fits the SMs at hand whatever the lengths are.
``UPCAST`` and ``PRECISION`` as in :mod:`nexusbench.kernels.attention.triton_decode`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nexusbench.kernels.attention.triton_decode import MASKED


@triton.jit
def prefill_tiles(
    qkv,
    cache,
    out,
    tile_sequence,
    tile_row,
    num_tiles,
    query_starts,
    lengths,
    blocks,
    scale,
    qkv_row,
    out_row,
    block_stride,
    token_stride,
    value_offset,
    blocks_row,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (programs, heads): ``out`` [T, heads x SIZE] of the sequences in ``query_starts``."""
    head = tl.program_id(1)
    value = tl.arange(0, SIZE_PAD)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        sequence = tl.load(tile_sequence + tile)
        first_row = tl.load(tile_row + tile)
        start = tl.load(query_starts + sequence)
        count = tl.load(query_starts + sequence + 1) - start
        length = tl.load(lengths + sequence)
        row = first_row + tl.arange(0, ROWS)
        position = length - count + row
        inside = (row < count)[:, None] & (value < SIZE)[None, :]
        token = (start + row).to(tl.int64)
        query = tl.load(
            qkv + token[:, None] * qkv_row + head * SIZE + value[None, :], mask=inside, other=0.0
        )
        if UPCAST:
            query = query.to(tl.float32)
        top = tl.full((ROWS,), MASKED, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, SIZE_PAD), tl.float32)
        for first in range(0, tl.minimum(length, length - count + first_row + ROWS), KEYS):
            key = first + tl.arange(0, KEYS)
            known = key < length
            block = tl.load(blocks + sequence * blocks_row + key // PAGE, mask=known, other=0)
            place = block.to(tl.int64) * block_stride + (key % PAGE) * token_stride
            place += (head // GROUP) * SIZE
            there = known[:, None] & (value < SIZE)[None, :]
            keys = tl.load(cache + place[:, None] + value[None, :], mask=there, other=0.0)
            values = tl.load(
                cache + value_offset + place[:, None] + value[None, :], mask=there, other=0.0
            )
            if UPCAST:
                keys = keys.to(tl.float32)
                values = values.to(tl.float32)
            scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
            scores = scores.to(tl.float32) * scale
            seen = (key[None, :] <= position[:, None]) & known[None, :]
            scores = tl.where(seen, scores, MASKED)
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            fade = tl.exp(top - higher)
            total = total * fade + tl.sum(weights, 1)
            product = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
            sums = sums * fade[:, None] + product
            top = higher
        tl.store(
            out + token[:, None] * out_row + head * SIZE + value[None, :],
            (sums / total[:, None]).to(out.dtype.element_ty),
            mask=inside,
        )

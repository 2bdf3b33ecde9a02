"""Triton: paged prefill attention over chunks of any lengths, causal, with prior context.

FlashAttention-2's loop (arXiv 2307.08691) over keys that lie in KV blocks: first those that all
rows of the tile see, without masks, then those on the diagonal. A program computes one tile for one
head. Tiles with the most keys are launched first for all heads, and the heads of a KV group, which
share its keys in L2, side by side: the hardware gives programs to the SMs of the
partition as they become free, longest first, which a persistent grid could not do better.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nexusbench.kernels.attention.triton_blocks import MASKED, fetch_block, fold_block


@triton.jit(
    do_not_specialize=["tile_sequence", "tile_row", "query_starts", "lengths", "blocks",
                       "blocks_row"]
)  # fmt: skip
def prefill_rows(
    qkv, cache, out, tile_sequence, tile_row, query_starts, lengths, blocks, scale,
    qkv_row, out_row, block_stride, token_stride, value_offset, blocks_row,
    GROUP: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (heads, tiles): ``out`` [T, heads x SIZE] of the sequences in ``query_starts``."""
    head = tl.program_id(0)
    tile = tl.program_id(1)
    value = tl.arange(0, SIZE_PAD)
    sequence = tl.load(tile_sequence + tile)
    start = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - start
    length = tl.load(lengths + sequence)
    first_row = tl.load(tile_row + tile)
    row = first_row + tl.arange(0, ROWS)
    before = length - count  # keys that were computed earlier
    position = before + row
    inside = (row < count)[:, None] & (value < SIZE)[None, :]
    token = (start + row).to(tl.int64)[:, None]
    column = (head * SIZE + value)[None, :]
    query = tl.load(qkv + token * qkv_row + column, mask=inside, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
    top = tl.full((ROWS,), MASKED, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, SIZE_PAD), tl.float32)
    table = blocks + sequence.to(tl.int64) * blocks_row
    # The first row sees the keys up to its own; so do all rows that follow.
    diagonal = (before + first_row + 1) // KEYS * KEYS
    for first in range(0, diagonal, KEYS):
        key = first + tl.arange(0, KEYS)
        keys, values = fetch_block(
            cache, table, key, key < length, value, head // GROUP, block_stride, token_stride,
            value_offset, SIZE, SIZE_PAD, PAGE, True, UPCAST,
        )  # fmt: skip
        top, total, sums = fold_block(
            query, keys, values, key[None, :] < length, top, total, sums, scale, True, PRECISION
        )
    # Keys beyond the tile's last row are seen by none of its rows.
    for first in range(diagonal, tl.minimum(length, before + first_row + ROWS), KEYS):
        key = first + tl.arange(0, KEYS)
        known = key < length
        keys, values = fetch_block(
            cache, table, key, known, value, head // GROUP, block_stride, token_stride,
            value_offset, SIZE, SIZE_PAD, PAGE, False, UPCAST,
        )  # fmt: skip
        seen = (key[None, :] <= position[:, None]) & known[None, :]
        top, total, sums = fold_block(
            query, keys, values, seen, top, total, sums, scale, False, PRECISION
        )
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + token * out_row + column, result, mask=inside)

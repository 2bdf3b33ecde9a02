"""Triton: paged prefill attention over chunks of any lengths, causal, with prior context.

FlashAttention-2's loop (arXiv 2307.08691) over keys that lie in KV blocks. Programs take tiles of
query rows in turn from a list, so that the grid fits the SMs at hand whatever the lengths are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nexusbench.kernels.attention.triton_blocks import MASKED, fetch_block, fold_block


@triton.jit
def prefill_tiles(
    qkv, cache, out, tile_sequence, tile_row, num_tiles, query_starts, lengths, blocks, scale,
    qkv_row, out_row, block_stride, token_stride, value_offset, blocks_row,
    GROUP: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (programs, heads): ``out`` [T, heads x SIZE] of the sequences in ``query_starts``."""
    head = tl.program_id(1)
    value = tl.arange(0, SIZE_PAD)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        sequence = tl.load(tile_sequence + tile)
        start = tl.load(query_starts + sequence)
        count = tl.load(query_starts + sequence + 1) - start
        length = tl.load(lengths + sequence)
        row = tl.load(tile_row + tile) + tl.arange(0, ROWS)
        position = length - count + row
        inside = (row < count)[:, None] & (value < SIZE)[None, :]
        token = (start + row).to(tl.int64)[:, None]
        column = (head * SIZE + value)[None, :]
        query = tl.load(qkv + token * qkv_row + column, mask=inside, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)
        top = tl.full((ROWS,), MASKED, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, SIZE_PAD), tl.float32)
        table = blocks + sequence * blocks_row
        # Keys beyond the tile's last row are seen by none of its rows.
        for first in range(0, tl.minimum(length, tl.max(position, 0) + 1), KEYS):
            key = first + tl.arange(0, KEYS)
            known = key < length
            keys, values = fetch_block(
                cache, table, key, known, value, head // GROUP, block_stride, token_stride,
                value_offset, SIZE, PAGE, UPCAST,
            )  # fmt: skip
            seen = (key[None, :] <= position[:, None]) & known[None, :]
            top, total, sums = fold_block(
                query, keys, values, seen, top, total, sums, scale, PRECISION
            )
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + token * out_row + column, result, mask=inside)

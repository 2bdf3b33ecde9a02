"""Triton: paged decode attention in parts of a sequence's keys, and their merge.

A program computes one part for one KV head, with that head's whole group of query heads as the
rows of one matrix (GQA packing): keys are read once, not once per query head. Parts are merged by
their log-sum-exp, as in FlashDecoding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nexusbench.kernels.attention.triton_blocks import MASKED, fetch_block, fold_block


@triton.jit
def decode_part(
    qkv, cache, partial, logsums, part_sequence, part_first, part_last, lengths, blocks, scale,
    qkv_row, block_stride, token_stride, value_offset, blocks_row,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (parts, KV heads): ``partial`` [parts, HEADS, SIZE] and ``logsums`` [parts, HEADS]."""
    part = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(part_sequence + part)
    start = tl.load(part_first + part) * PAGE
    stop = tl.minimum(tl.load(part_last + part) * PAGE, tl.load(lengths + sequence))
    member = tl.arange(0, GROUP_PAD)
    value = tl.arange(0, SIZE_PAD)
    head = kv_head * GROUP + member
    inside = (member < GROUP)[:, None] & (value < SIZE)[None, :]
    row = qkv + sequence.to(tl.int64) * qkv_row
    query = tl.load(row + head[:, None] * SIZE + value[None, :], mask=inside, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
    top = tl.full((GROUP_PAD,), MASKED, tl.float32)
    total = tl.zeros((GROUP_PAD,), tl.float32)
    sums = tl.zeros((GROUP_PAD, SIZE_PAD), tl.float32)
    table = blocks + sequence * blocks_row
    for first in range(start, stop, KEYS):
        key = first + tl.arange(0, KEYS)
        known = key < stop
        keys, values = fetch_block(
            cache, table, key, known, value, kv_head, block_stride, token_stride, value_offset,
            SIZE, PAGE, UPCAST,
        )  # fmt: skip
        top, total, sums = fold_block(
            query, keys, values, known[None, :], top, total, sums, scale, PRECISION
        )
    out = part * HEADS + head
    tl.store(partial + out[:, None] * SIZE + value[None, :], sums / total[:, None], mask=inside)
    tl.store(logsums + out, top + tl.log(total), mask=member < GROUP)


@triton.jit
def merge_parts(
    partial, logsums, part_starts, out, out_row,
    HEADS: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, heads): the parts of each weighted by exp(logsum), into ``out`` [N, ...]."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    value = tl.arange(0, SIZE_PAD)
    inside = value < SIZE
    top = tl.zeros([], tl.float32) + MASKED
    total = tl.zeros([], tl.float32)
    sums = tl.zeros((SIZE_PAD,), tl.float32)
    for part in range(tl.load(part_starts + sequence), tl.load(part_starts + sequence + 1)):
        row = part * HEADS + head
        logsum = tl.load(logsums + row)
        higher = tl.maximum(top, logsum)
        fade = tl.exp(top - higher)
        weight = tl.exp(logsum - higher)
        mean = tl.load(partial + row * SIZE + value, mask=inside, other=0.0)
        sums = sums * fade + mean * weight
        total = total * fade + weight
        top = higher
    place = sequence.to(tl.int64) * out_row + head * SIZE + value
    tl.store(out + place, (sums / total).to(out.dtype.element_ty), mask=inside)

"""Triton: paged decode attention in parts of a sequence's keys, and their merge.

A program computes one part for one KV head, with that head's whole group of query heads as the
rows of one matrix (GQA packing): keys are read once, not once per query head. Parts are merged by
their log-sum-exp (FlashDecoding; Milakov and Gimelshein, arXiv 1805.02867, for the algebra).

``UPCAST`` computes in fp32: the interpreter keeps bf16 as bit patterns and is silently wrong on
them. ``PRECISION`` is tl.dot's: "ieee" for fp32 tests, since GPUs default to TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Instead of -inf, which turns the rescaling of a part with no visible key into NaN.
MASKED = tl.constexpr(-1.0e30)


@triton.jit
def decode_part(
    qkv,
    cache,
    partial,
    logsums,
    part_sequence,
    part_first,
    part_last,
    lengths,
    blocks,
    scale,
    qkv_row,
    block_stride,
    token_stride,
    value_offset,
    blocks_row,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (parts, KV heads): ``partial`` [parts, HEADS, SIZE] and ``logsums`` [parts, HEADS]."""
    part = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(part_sequence + part)
    length = tl.load(lengths + sequence)
    start = tl.load(part_first + part) * PAGE
    stop = tl.minimum(tl.load(part_last + part) * PAGE, length)
    member = tl.arange(0, GROUP_PAD)
    value = tl.arange(0, SIZE_PAD)
    head = kv_head * GROUP + member
    inside = (member < GROUP)[:, None] & (value < SIZE)[None, :]
    query = tl.load(
        qkv + sequence.to(tl.int64) * qkv_row + head[:, None] * SIZE + value[None, :],
        mask=inside,
        other=0.0,
    )
    if UPCAST:
        query = query.to(tl.float32)
    top = tl.full((GROUP_PAD,), MASKED, tl.float32)
    total = tl.zeros((GROUP_PAD,), tl.float32)
    sums = tl.zeros((GROUP_PAD, SIZE_PAD), tl.float32)
    for first in range(start, stop, KEYS):
        key = first + tl.arange(0, KEYS)
        seen = key < stop
        block = tl.load(blocks + sequence * blocks_row + key // PAGE, mask=seen, other=0)
        place = block.to(tl.int64) * block_stride + (key % PAGE) * token_stride + kv_head * SIZE
        there = seen[:, None] & (value < SIZE)[None, :]
        keys = tl.load(cache + place[:, None] + value[None, :], mask=there, other=0.0)
        values = tl.load(
            cache + value_offset + place[:, None] + value[None, :], mask=there, other=0.0
        )
        if UPCAST:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION).to(tl.float32) * scale
        scores = tl.where(seen[None, :], scores, MASKED)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(weights, 1)
        product = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        sums = sums * fade[:, None] + product
        top = higher
    row = part * HEADS + head
    tl.store(partial + row[:, None] * SIZE + value[None, :], sums / total[:, None], mask=inside)
    tl.store(logsums + row, top + tl.log(total), mask=member < GROUP)


@triton.jit
def merge_parts(
    partial,
    logsums,
    part_starts,
    out,
    out_row,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
):
    """Grid (sequences, heads): the parts of each weighted by exp(logsum), into ``out`` [N, ...]."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    value = tl.arange(0, SIZE_PAD)
    inside = value < SIZE
    top = MASKED
    total = 0.0
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

"""Triton: paged decode attention in equal shares of all keys, and the merge of what was cut.

The work list is LeanAttention's (``nexusbench.kernels.split_kv``). A segment is a run of keys of
one sequence and one KV head, with that head's whole group of query heads as the rows of one matrix
(GQA packing): keys are read once, not once per query head.

Index arrays are never specialised on: their alignment and strides change from step to step, and
each new combination would be compiled in the middle of a run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nexusbench.kernels.attention.triton_blocks import MASKED, fetch_block, fold_block


@triton.jit(do_not_specialize=["starts", "segments", "blocks", "blocks_row"])
def decode_segments(
    qkv, cache, out, partial, logsums, starts, segments, blocks, scale,
    qkv_row, out_row, block_stride, token_stride, value_offset, blocks_row,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (programs): whole outputs into ``out`` [N, heads x SIZE], pieces into their slots.

    ``partial`` is [slots, GROUP, SIZE] and ``logsums`` [slots, GROUP], both fp32 and to base 2.
    """
    member = tl.arange(0, GROUP_PAD)
    value = tl.arange(0, SIZE_PAD)
    inside = (member < GROUP)[:, None] & (value < SIZE)[None, :]
    here = tl.program_id(0)
    for number in range(tl.load(starts + here), tl.load(starts + here + 1)):
        segment = segments + number * 5
        sequence = tl.load(segment)
        kv_head = tl.load(segment + 1)
        stop = tl.load(segment + 3)
        column = (kv_head * GROUP + member)[:, None] * SIZE + value[None, :]
        row = sequence.to(tl.int64)
        query = tl.load(qkv + row * qkv_row + column, mask=inside, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)
        top = tl.full((GROUP_PAD,), MASKED, tl.float32)
        total = tl.zeros((GROUP_PAD,), tl.float32)
        sums = tl.zeros((GROUP_PAD, SIZE_PAD), tl.float32)
        table = blocks + row * blocks_row
        for first in range(tl.load(segment + 2), stop, KEYS):
            key = first + tl.arange(0, KEYS)
            known = key < stop
            keys, values = fetch_block(
                cache, table, key, known, value, kv_head, block_stride, token_stride, value_offset,
                SIZE, SIZE_PAD, PAGE, False, UPCAST,
            )  # fmt: skip
            top, total, sums = fold_block(
                query, keys, values, known[None, :], top, total, sums, scale, False, PRECISION
            )
        result = sums / total[:, None]
        slot = tl.load(segment + 4)
        if slot < 0:
            tl.store(out + row * out_row + column, result.to(out.dtype.element_ty), mask=inside)
        else:
            at = slot * GROUP + member
            tl.store(partial + at[:, None] * SIZE + value[None, :], result, mask=inside)
            tl.store(logsums + at, top + tl.log2(total), mask=member < GROUP)


@triton.jit(do_not_specialize=["merges"])
def merge_segments(
    partial, logsums, merges, out, out_row,
    GROUP: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    """Grid (merges, query heads of a group): pieces weighted by exp2(logsum), into ``out``.

    A row with no slots is padding, as captured launches have.
    """
    merge = merges + tl.program_id(0) * 4
    member = tl.program_id(1)
    first = tl.load(merge + 2)
    stop = tl.load(merge + 3)
    if first < stop:
        value = tl.arange(0, SIZE_PAD)
        inside = value < SIZE
        top = tl.zeros([], tl.float32) + MASKED
        total = tl.zeros([], tl.float32)
        sums = tl.zeros((SIZE_PAD,), tl.float32)
        for slot in range(first, stop):
            at = slot * GROUP + member
            logsum = tl.load(logsums + at)
            higher = tl.maximum(top, logsum)
            fade = tl.exp2(top - higher)
            weight = tl.exp2(logsum - higher)
            mean = tl.load(partial + at * SIZE + value, mask=inside, other=0.0)
            sums = sums * fade + mean * weight
            total = total * fade + weight
            top = higher
        head = tl.load(merge + 1) * GROUP + member
        place = tl.load(merge).to(tl.int64) * out_row + head * SIZE + value
        tl.store(out + place, (sums / total).to(out.dtype.element_ty), mask=inside)

"""Triton: what both kernels do with a block of keys: fetch it from the pages, fold it in.

``UPCAST`` computes in fp32: the interpreter keeps bf16 as bit patterns and is silently wrong on
them; a GPU multiplies bf16 as it is. ``PRECISION`` is tl.dot's for fp32 inputs, which GPUs would
else round to TF32. Offsets into pages are 64-bit: a pool may hold more than 2^31 values a layer.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Instead of -inf, which turns the rescaling of rows with no visible key into NaN.
MASKED = tl.constexpr(-1.0e30)


@triton.jit
def fetch_block(
    cache, table, key, known, value, kv_head, block_stride, token_stride, value_offset,
    SIZE: tl.constexpr, SIZE_PAD: tl.constexpr, PAGE: tl.constexpr, WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys and values [KEYS, SIZE_PAD] at the positions ``key`` of the sequence of ``table``.

    ``WHOLE``: all of them are ``known``, which spares the masks.
    """
    if WHOLE:
        block = tl.load(table + key // PAGE)
    else:
        block = tl.load(table + key // PAGE, mask=known, other=0)
    place = block.to(tl.int64) * block_stride + (key % PAGE) * token_stride + kv_head * SIZE
    at = cache + place[:, None] + value[None, :]
    if WHOLE and SIZE == SIZE_PAD:
        keys = tl.load(at)
        values = tl.load(at + value_offset)
    else:
        there = known[:, None] & (value < SIZE)[None, :]
        keys = tl.load(at, mask=there, other=0.0)
        values = tl.load(at + value_offset, mask=there, other=0.0)
    if UPCAST:
        keys = keys.to(tl.float32)
        values = values.to(tl.float32)
    return keys, values


@triton.jit
def fold_block(
    query, keys, values, seen, top, total, sums, scale,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax (arXiv 1805.02867): maxima, sums of weights, of values.

    To base 2, which GPUs have an instruction for: ``scale`` includes log2(e). ``WHOLE``: every row
    sees every key.
    """
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION).to(tl.float32) * scale
    if not WHOLE:
        scores = tl.where(seen, scores, MASKED)
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(values.dtype), values, sums * fade[:, None], input_precision=PRECISION)
    return higher, total, sums

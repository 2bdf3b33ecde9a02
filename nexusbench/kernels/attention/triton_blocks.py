"""Triton: what both kernels do with a block of keys: fetch it from the pages, fold it in.

``UPCAST`` computes in fp32: the interpreter keeps bf16 as bit patterns and is silently wrong on
them. ``PRECISION`` is tl.dot's: "ieee" for fp32 tests, since GPUs default to TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Instead of -inf, which turns the rescaling of rows with no visible key into NaN.
MASKED = tl.constexpr(-1.0e30)


@triton.jit
def fetch_block(
    cache, table, key, known, value, kv_head, block_stride, token_stride, value_offset,
    SIZE: tl.constexpr, PAGE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys and values [KEYS, SIZE_PAD] at the positions ``key`` of the sequence of ``table``."""
    block = tl.load(table + key // PAGE, mask=known, other=0)
    place = block.to(tl.int64) * block_stride + (key % PAGE) * token_stride + kv_head * SIZE
    at = cache + place[:, None] + value[None, :]
    there = known[:, None] & (value < SIZE)[None, :]
    keys = tl.load(at, mask=there, other=0.0)
    values = tl.load(at + value_offset, mask=there, other=0.0)
    if UPCAST:
        keys = keys.to(tl.float32)
        values = values.to(tl.float32)
    return keys, values


@triton.jit
def fold_block(
    query, keys, values, seen, top, total, sums, scale, PRECISION: tl.constexpr
):  # fmt: skip
    """One step of the online softmax (arXiv 1805.02867): maxima, sums of weights, of values."""
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION).to(tl.float32) * scale
    scores = tl.where(seen, scores, MASKED)
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp(scores - higher[:, None])
    fade = tl.exp(top - higher)
    total = total * fade + tl.sum(weights, 1)
    product = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return higher, total, sums * fade[:, None] + product

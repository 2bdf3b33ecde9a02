"""The decoder's small operations, each one native call; torch's where there are none.

KV caches, K and V alike, are ``[num_blocks, kv_heads, block_size, head_dim]`` tensors of any
strides whose rows touch; contiguous is fastest, since a (block, head) pair is then one run, but a
permuted view of ``[num_blocks, block_size, 2, kv_heads, head_dim]`` serves too. A slot is ``block *
block_size + offset``. All tensors are on the CPU and, but for the caches, contiguous; activations
and caches of one dtype (bf16 or fp32), norm weights and rope tables in fp32. ValueError for
anything else; IndexError for positions, slots and blocks that do not exist, before anything is
computed. ``threads`` defaults to torch's number in the calling thread. Every row's result is the
same bits in any batch.
"""

from __future__ import annotations

import ctypes

import torch

from nexusbench.kernels import reference
from nexusbench.kernels.native import bindings
from nexusbench.kernels.native.bindings import (
    address,
    check,
    check_rows,
    element_size,
    require_fit,
)


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else threads


def _native(dtype: torch.dtype) -> bindings.Functions | None:
    """The kernels if there are any for this dtype."""
    return bindings.functions() if dtype in (torch.bfloat16, torch.float32) else None


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """[M, N] of bf16 or fp32 -> ``x / rms(x) * weight`` in ``dtype`` (x's own)."""
    dtype = x.dtype if dtype is None else dtype
    functions = _native(x.dtype) and _native(dtype)
    if functions is None:
        return reference.rms_norm(x, weight, eps, dtype)
    M, N = (int(size) for size in x.shape)
    check("x", x, (M, N), x.dtype)
    check("weight", weight, (N,), torch.float32)
    y = torch.empty(M, N, dtype=dtype)
    functions.rms_norm(
        element_size(x.dtype), element_size(dtype), x.data_ptr(), weight.data_ptr(), eps, M, N,
        y.data_ptr(), _threads(threads),
    )  # fmt: skip
    return y


def silu_mul(x: torch.Tensor, *, threads: int | None = None) -> torch.Tensor:
    """[M, 2 N] = gate, up -> silu(gate) * up, [M, N]."""
    functions = _native(x.dtype)
    if functions is None:
        return reference.silu_mul(x)
    M, N = int(x.shape[0]), int(x.shape[1]) // 2
    check("x", x, (M, 2 * N), x.dtype)
    y = torch.empty(M, N, dtype=x.dtype)
    functions.silu_mul(element_size(x.dtype), x.data_ptr(), M, N, y.data_ptr(), _threads(threads))
    return y


def rope_and_cache(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    *,
    neighbours: bool = False,
    threads: int | None = None,
) -> None:
    """Rotates q and k of ``qkv`` in place and writes k and v into the cache.

    qkv: [M, (heads + 2 kv_heads) * head_dim], q then k then v. positions, slots: int64 [M]; a slot
    below 0 is not written. cos_sin: fp32 [max_positions, head_dim]. Values i and i + head_dim / 2
    are rotated together, as in the HF models, and a row of cos_sin is head_dim / 2 cosines, then
    the sines; with ``neighbours`` values 2 i and 2 i + 1 are, and cosines and sines alternate.
    q_norm, k_norm: fp32 [head_dim], the RMSNorm per head of Qwen3, applied first with ``eps``.
    """
    functions = _native(qkv.dtype)
    if functions is None:
        reference.rope_and_cache(
            qkv, positions, slots, cos_sin, k_cache, v_cache, q_norm, k_norm, eps,
            neighbours=neighbours,
        )  # fmt: skip
        return
    M, width = (int(size) for size in qkv.shape)
    heads = _heads(width, k_cache, v_cache, qkv.dtype, joint=True, neighbours=neighbours)
    check("qkv", qkv, (M, width), qkv.dtype)
    check("positions", positions, (M,), torch.int64)
    check("slots", slots, (M,), torch.int64)
    check("cos_sin", cos_sin, (int(cos_sin.shape[0]), heads.dim), torch.float32)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check(name, weight, (heads.dim,), torch.float32)
    unfit = functions.rope(
        element_size(qkv.dtype), ctypes.addressof(heads), qkv.data_ptr(), M, positions.data_ptr(),
        slots.data_ptr(), cos_sin.data_ptr(), int(cos_sin.shape[0]), address(q_norm),
        address(k_norm), eps, k_cache.data_ptr(), v_cache.data_ptr(), _threads(threads),
    )  # fmt: skip
    require_fit(unfit)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """One query token per sequence over its paged context -> [M, heads * head_dim].

    q: rows of heads * head_dim, rows may lie apart (the q columns of a joint projection). tables:
    int32 [M, max_blocks]; lengths: int32 [M], the token itself included; a row of length 0 gives 0.
    """
    functions = _native(q.dtype)
    if functions is None:
        return reference.decode_attention(q, k_cache, v_cache, tables, lengths, scale)
    M, width = (int(size) for size in q.shape)
    heads = _heads(width, k_cache, v_cache, q.dtype, joint=False)
    ldq = check_rows("q", q, width, q.dtype)
    check("tables", tables, (M, int(tables.shape[1])), torch.int32)
    check("lengths", lengths, (M,), torch.int32)
    out = torch.empty(M, width, dtype=q.dtype)
    unfit = functions.decode_attention(
        element_size(q.dtype), ctypes.addressof(heads), q.data_ptr(), ldq, k_cache.data_ptr(),
        v_cache.data_ptr(), tables.data_ptr(), int(tables.shape[1]), lengths.data_ptr(), M, scale,
        out.data_ptr(), _threads(threads),
    )  # fmt: skip
    require_fit(unfit)
    return out


CHUNK_TOKENS = 128  # of a unit of ``chunk_attention``; its keys and values are packed once


def attends_chunks(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether ``chunk_attention`` can be used: bf16 tiles (AMX) and heads of whole tiles."""
    functions = _native(dtype) if dtype == torch.bfloat16 and head_dim % 32 == 0 else None
    return functions is not None and functions.level() == 2


def chunk_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    starts: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    tiles: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """Causal attention of chunks over their paged context -> [T, heads * head_dim], bf16.

    q: rows of heads * head_dim, rows may lie apart. Sequence n has the rows ``starts[n]`` to
    ``starts[n + 1]`` (int64 [N + 1]), blocks ``tables[n]`` and ``lengths[n]`` keys (int32),
    the chunk's own included. ``tiles`` are the sequences and first tokens of units of
    ``CHUNK_TOKENS`` (int64). Only where ``attends_chunks``.
    """
    functions = bindings.functions()
    assert functions is not None
    T, width = (int(size) for size in q.shape)
    heads = _heads(width, k_cache, v_cache, q.dtype, joint=False)
    ldq = check_rows("q", q, width, torch.bfloat16)
    N, units = int(lengths.shape[0]), int(tiles[0].shape[0])
    check("starts", starts, (N + 1,), torch.int64)
    check("tables", tables, (N, int(tables.shape[1])), torch.int32)
    check("lengths", lengths, (N,), torch.int32)
    for tile in tiles:
        check("tiles", tile, (units,), torch.int64)
    out = torch.empty(T, width, dtype=q.dtype)
    unfit = functions.chunk_attention(
        ctypes.addressof(heads), q.data_ptr(), ldq, k_cache.data_ptr(), v_cache.data_ptr(), N,
        starts.data_ptr(), tables.data_ptr(), int(tables.shape[1]), lengths.data_ptr(),
        tiles[0].data_ptr(), tiles[1].data_ptr(), CHUNK_TOKENS, units, scale, out.data_ptr(),
        _threads(threads),
    )  # fmt: skip
    require_fit(unfit)
    return out


def argmax(logits: torch.Tensor, *, threads: int | None = None) -> torch.Tensor:
    """Index of the first largest value of each fp32 row, int64 [M]."""
    functions = _native(logits.dtype) if logits.dtype == torch.float32 else None
    if functions is None:
        return reference.argmax(logits)
    M, N = (int(size) for size in logits.shape)
    check("logits", logits, (M, N), torch.float32)
    out = torch.empty(M, dtype=torch.int64)
    functions.argmax(logits.data_ptr(), M, N, out.data_ptr(), _threads(threads))
    return out


def _heads(
    width: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    dtype: torch.dtype,
    *,
    joint: bool,
    neighbours: bool = False,
) -> bindings.Heads:
    """The heads of rows of this width. Raises ValueError if they do not fit the caches."""
    heads = bindings.heads_of(0, k_cache, v_cache, neighbours=neighbours)
    heads.query = width // heads.dim - (2 * heads.kv if joint else 0)
    if width % heads.dim or heads.query <= 0 or heads.query % heads.kv:
        raise ValueError(f"{width} columns do not fit {heads.kv} KV heads of {heads.dim}")
    if k_cache.dtype != dtype:
        raise ValueError(f"k_cache is {k_cache.dtype}; wanted {dtype}")
    return heads

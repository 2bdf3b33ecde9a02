"""The decoder's small operations, each one native call; torch's where there are none.

KV cache layout, K and V alike: ``[num_blocks, kv_heads, block_size, head_dim]``: a (block, head)
pair is one contiguous run, which attention streams. A slot is ``block * block_size + offset``.
All tensors are contiguous and on the CPU, activations and caches in one dtype (bf16 or fp32), norm
weights and rope tables in fp32. ValueError for anything else. ``threads`` defaults to torch's
number in the calling thread. Every row's result is the same bits in any batch.
"""

from __future__ import annotations

import torch

from nexusbench.kernels import reference
from nexusbench.kernels.native import bindings
from nexusbench.kernels.native.bindings import address, check, check_rows, element_size


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else threads


def _native(dtype: torch.dtype) -> bindings.Functions | None:
    """The kernels if there are any for this dtype."""
    return bindings.functions() if dtype in (torch.bfloat16, torch.float32) else None


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """[M, N] ``x / rms(x) * weight``; with ``residual``, ``residual += x`` and that normalised."""
    functions = _native(x.dtype)
    if functions is None:
        return reference.rms_norm(x, weight, eps, residual)
    M, N = (int(size) for size in x.shape)
    check("x", x, (M, N), x.dtype)
    check("weight", weight, (N,), torch.float32)
    if residual is not None:
        check("residual", residual, (M, N), x.dtype)
    y = torch.empty_like(x)
    functions.rms_norm(
        element_size(x.dtype), x.data_ptr(), address(residual), weight.data_ptr(), eps, M, N,
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
    threads: int | None = None,
) -> None:
    """Rotates q and k of ``qkv`` in place and writes k and v into the cache.

    qkv: [M, (heads + 2 kv_heads) * head_dim], q then k then v. positions, slots: int64 [M]; a slot
    below 0 is not written. cos_sin: fp32 [max_positions, head_dim], cosines then sines of the
    head_dim / 2 angles ("rotate half", as in the HF models). q_norm, k_norm: fp32 [head_dim], the
    RMSNorm per head of Qwen3, applied first with ``eps``.
    """
    functions = _native(qkv.dtype)
    if functions is None:
        reference.rope_and_cache(
            qkv, positions, slots, cos_sin, k_cache, v_cache, q_norm, k_norm, eps
        )
        return
    M, heads = int(qkv.shape[0]), _query_heads(int(qkv.shape[1]), k_cache, joint=True)
    kv_heads, block_size, dim = (int(size) for size in k_cache.shape[1:])
    check("qkv", qkv, (M, (heads + 2 * kv_heads) * dim), qkv.dtype)
    _check_caches(k_cache, v_cache, qkv.dtype)
    check("positions", positions, (M,), torch.int64)
    check("slots", slots, (M,), torch.int64)
    check("cos_sin", cos_sin, (int(cos_sin.shape[0]), dim), torch.float32)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check(name, weight, (dim,), torch.float32)
    functions.rope(
        element_size(qkv.dtype), heads, kv_heads, dim, block_size, qkv.data_ptr(), M,
        positions.data_ptr(), slots.data_ptr(), cos_sin.data_ptr(), address(q_norm),
        address(k_norm), eps, k_cache.data_ptr(), v_cache.data_ptr(), _threads(threads),
    )  # fmt: skip


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
    M, heads = int(q.shape[0]), _query_heads(int(q.shape[1]), k_cache, joint=False)
    kv_heads, block_size, dim = (int(size) for size in k_cache.shape[1:])
    ldq = check_rows("q", q, heads * dim, q.dtype)
    _check_caches(k_cache, v_cache, q.dtype)
    check("tables", tables, (M, int(tables.shape[1])), torch.int32)
    check("lengths", lengths, (M,), torch.int32)
    out = torch.empty(M, heads * dim, dtype=q.dtype)
    functions.decode_attention(
        element_size(q.dtype), heads, kv_heads, dim, block_size, q.data_ptr(), ldq,
        k_cache.data_ptr(), v_cache.data_ptr(), tables.data_ptr(), int(tables.shape[1]),
        lengths.data_ptr(), M, scale, out.data_ptr(), _threads(threads),
    )  # fmt: skip
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


def _query_heads(width: int, k_cache: torch.Tensor, *, joint: bool) -> int:
    """Query heads in a row of this width. Raises ValueError if they do not fit the cache."""
    if k_cache.dim() != 4:
        raise ValueError(f"k_cache is {tuple(k_cache.shape)}; wanted (blocks, heads, size, dim)")
    kv_heads, dim = int(k_cache.shape[1]), int(k_cache.shape[3])
    heads = width // dim - (2 * kv_heads if joint else 0)
    if dim % 2 or width % dim or heads <= 0 or heads % kv_heads:
        raise ValueError(f"{width} columns do not fit {kv_heads} KV heads of {dim}")
    return heads


def _check_caches(k_cache: torch.Tensor, v_cache: torch.Tensor, dtype: torch.dtype) -> None:
    shape = tuple(int(size) for size in k_cache.shape)
    check("k_cache", k_cache, shape, dtype)
    check("v_cache", v_cache, shape, dtype)

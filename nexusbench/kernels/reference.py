"""What the fused kernels compute, in plain torch: the fallback, and what tests compare with.

Shapes and caches are those of ``nexusbench.kernels.fused``. Arithmetic is in the dtype given, sums
in at least fp32, so that the same code in float64 is an exact enough reference.
"""

from __future__ import annotations

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``x / rms(x) * weight`` in ``dtype`` (x's own)."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * _wide(weight)).to(dtype or x.dtype)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """[M, 2 N] = gate, up -> silu(gate) * up, [M, N]."""
    gate, up = _wide(x).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def _halves(x: torch.Tensor, neighbours: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Even and odd values, or first and second half."""
    if neighbours:
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second


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
) -> None:
    """Rotates q and k of ``qkv`` in place, normalised first if asked; writes k and v to slots."""
    kv_heads, block_size, dim = (int(size) for size in k_cache.shape[1:])
    heads = qkv.view(qkv.shape[0], -1, dim)
    query = heads.shape[1] - 2 * kv_heads
    turns = _wide(cos_sin)[positions].unsqueeze(1)
    cos, sin = _halves(turns, neighbours)
    parts = ((heads[:, :query], q_norm), (heads[:, query : query + kv_heads], k_norm))
    for part, weight in parts:
        wide = _wide(part)
        if weight is not None:
            scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
            wide = wide * scale * _wide(weight)
        a, b = _halves(wide, neighbours)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1 if neighbours else -2)
        part.copy_(turned.flatten(-2))
    kept = slots >= 0
    at = slots[kept]
    blocks, offsets = at // block_size, at % block_size
    k_cache[blocks, :, offsets] = heads[kept, query : query + kv_heads]
    v_cache[blocks, :, offsets] = heads[kept, query + kv_heads :]


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query token per sequence over its paged context: [M, heads * dim], 0 for no context."""
    kv_heads, block_size, dim = (int(size) for size in k_cache.shape[1:])
    M = int(q.shape[0])
    query = _wide(q).reshape(M, kv_heads, -1, dim)
    out = torch.zeros_like(query)
    for m, length in enumerate(lengths.tolist()):
        if length <= 0:
            continue
        blocks = tables[m, : -(-length // block_size)].long()
        k, v = (
            _wide(cache[blocks]).transpose(0, 1).reshape(kv_heads, -1, dim)[:, :length]
            for cache in (k_cache, v_cache)
        )
        weights = torch.softmax(query[m] @ k.transpose(1, 2) * scale, dim=-1)
        out[m] = weights @ v
    return out.reshape(M, -1).to(q.dtype)


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Index of the first largest value of each row, int64 [M]."""
    most = logits.amax(dim=-1, keepdim=True)
    return (logits == most).to(torch.uint8).argmax(dim=-1)

"""Paged KV memory: one tensor per layer, written in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nexusbench.core.errors import UsageError
from nexusbench.kernels.attention.rules import AttentionRule
from nexusbench.kernels.native import memory


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Query heads, KV heads and the size of a head.

    With ``latent_dim`` a token keeps one latent for all heads (MLA): its ``head_dim`` values are
    the key of every query head, the first ``latent_dim`` of them the value.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    latent_dim: int = 0

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def query_size(self) -> int:
        """Values of one token's queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Values of one token's keys and values together."""
        return (1 if self.latent_dim else 2) * self.num_kv_heads * self.head_dim

    @property
    def output_size(self) -> int:
        """Values of one token's attention."""
        return self.num_heads * (self.latent_dim or self.head_dim)

    @property
    def qkv_size(self) -> int:
        """Values of one row of the fused projection."""
        return self.query_size + self.kv_size


class LayerKV:
    """One layer's keys and values, [num_blocks, block_size, 2, KV heads, head size], or its latents
    [num_blocks, block_size, 1, 1, head size]; and by which rule they are attended to.

    Keys and values of a token are neighbours, as they are in the output of the fused projection:
    one copy writes both, one gather per block reads both, 2 to 4 KiB at a time.
    """

    __slots__ = ("blocks", "keys", "rule", "slots", "tensor", "values")

    def __init__(
        self, tensor: torch.Tensor, rule: AttentionRule | None = None, latent_dim: int = 0
    ) -> None:
        num_blocks, block_size = tensor.shape[:2]
        self.tensor = tensor
        self.rule = rule or AttentionRule(1 / math.sqrt(tensor.shape[-1]))
        self.blocks = tensor.view(num_blocks, -1)
        self.slots = tensor.view(num_blocks * block_size, -1)
        # [num_blocks, KV heads, block_size, head size], as native kernels take them
        self.keys, self.values = (each.transpose(1, 2) for each in keys_values(tensor, latent_dim))

    def write(self, slots: torch.Tensor, kv: torch.Tensor) -> None:
        """Put the rows ``kv`` [T, 2 x KV heads x head size] into ``slots`` [T]."""
        self.slots.index_copy_(0, slots, kv)


class PagedKV:
    """The KV cache of all layers: ``num_blocks`` blocks of ``block_size`` tokens.

    Allocated once and zeroed: masked keys are multiplied by zero, which garbage that happens to be
    NaN would survive. ``rules`` are those of the layers; without them, attention is over the whole
    context, scaled by the size of a head. Raises UsageError if the memory cannot be had.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        heads: HeadShape,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        rules: Sequence[AttentionRule] | None = None,
    ) -> None:
        self.num_blocks, self.block_size, self.heads = num_blocks, block_size, heads
        kinds, latent = (1 if heads.latent_dim else 2), heads.latent_dim
        shape = (num_blocks, block_size, kinds, heads.num_kv_heads, heads.head_dim)
        try:
            usual: list[AttentionRule | None] = [None] * num_layers
            self.layers = [
                LayerKV(_zeros(shape, dtype, device), rule, latent) for rule in rules or usual
            ]
        except RuntimeError as error:  # torch's error for too little memory, on any device
            wanted = num_layers * num_blocks * block_size * heads.kv_size * dtype.itemsize
            raise UsageError(
                f"no memory for a KV cache of {num_blocks:,} blocks ({wanted / 1e9:.1f} GB): "
                f"{str(error).splitlines()[0]}. Ask for fewer blocks"
            ) from None


def keys_values(rows: torch.Tensor, latent_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as views [..., KV heads, size] of [..., kinds, KV heads, head size]."""
    keys = rows[..., 0, :, :]
    return keys, keys[..., :latent_dim] if latent_dim else rows[..., 1, :, :]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type == "cpu":
        return memory.zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)

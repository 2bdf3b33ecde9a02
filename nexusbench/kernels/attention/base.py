"""The interface: a backend prepares a step's plan once, and what it gives runs in every layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan


@dataclass(frozen=True, slots=True)
class PagedDecodes:
    """Where decodes find their keys: ``tables`` [n, blocks] and ``lengths`` [n], both int32."""

    tables: torch.Tensor
    lengths: torch.Tensor


class PreparedAttention(ABC):
    """The attention of one step: index tensors and masks are made, layers only run.

    ``paged`` is set by a backend of native kernels if the step is decodes alone: whole layers may
    then run in one call, and ``run`` is not needed.
    """

    paged: PagedDecodes | None = None

    @abstractmethod
    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        """[T, (heads + 2 x KV heads) x head_dim] -> [T, heads x head_dim].

        ``qkv`` holds rotated queries and keys, and values; keys and values are already in
        ``layer``. Causal: a token attends to its request's tokens up to itself. Called
        in torch's inference mode.
        """


class AttentionBackend(ABC):
    """Attention of one worker. It owns scratch memory, so two workers need two backends.

    A prepared step is valid until the next ``prepare`` of the same backend. ``padded_tokens`` is
    what to plan its steps with.
    """

    padded_tokens: int = 1 << 40  # kernels that read pages pad nothing: one bucket will do

    def __init__(self, kv: PagedKV) -> None:
        self.heads: HeadShape = kv.heads
        self.block_size = kv.block_size
        tensor = kv.layers[0].tensor
        self.dtype, self.device = tensor.dtype, tensor.device

    @abstractmethod
    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Make what the step needs on the device."""

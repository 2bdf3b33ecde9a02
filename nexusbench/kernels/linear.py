"""Dense layers: the one seam behind which weights may be laid out as a kernel likes them."""

from __future__ import annotations

import torch
from torch.nn import functional


class Linear:
    """``x @ weight.T + bias`` with ``weight`` [outputs, inputs] and ``bias`` [outputs] or None.

    Whoever makes one gives the weight away: it may be repacked.
    """

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] -> [T, outputs], in the weight's data type."""
        return functional.linear(x, self.weight, self.bias)

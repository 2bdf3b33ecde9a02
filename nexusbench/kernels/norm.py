"""RMSNorm in few calls: fp32 in, any data type out."""

from __future__ import annotations

import math

import torch
from torch.nn import functional


class RmsNorm:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension (arXiv 1910.07467).

    ``weight`` is [size], or [n, size] for n heads with weights of their own.
    Computed in fp32, returned in ``dtype``. On a CPU torch's own rms_norm is a chain of six
    element-wise operators; norm, hypot, division and product measure two to three times faster.
    """

    __slots__ = ("_floor", "_scaled", "_size", "dtype", "eps", "weight")

    def __init__(self, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        size = weight.shape[-1]
        self.weight, self.eps, self.dtype = weight.float(), eps, dtype
        self._size = (size,)
        # sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(size * eps)) / sqrt(size)
        self._floor = torch.full((1,), math.sqrt(size * eps), device=weight.device)
        self._scaled = self.weight * math.sqrt(size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] fp32 -> [..., size] in ``dtype``."""
        if x.is_cuda:
            normed = functional.rms_norm(x, self._size, None, self.eps)
            return normed.mul_(self.weight).to(self.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._floor)
        if self.dtype == torch.float32:
            return torch.div(x, length).mul_(self._scaled)
        return torch.mul(x / length, self._scaled, out=torch.empty_like(x, dtype=self.dtype))

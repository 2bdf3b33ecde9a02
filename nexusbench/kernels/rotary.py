"""Rotary position embedding on pairs of neighbours, which is one complex product per head."""

from __future__ import annotations

import math
import threading
from typing import Literal

import torch

from nexusbench.kernels.norm import RmsNorm

Kind = Literal["default", "linear", "llama3"]


class Rotary:
    """The rotations of all positions so far needed, [positions, head_dim / 2] complex numbers.

    HF checkpoints rotate value i with value i + head_dim / 2. The decoder permutes the rows of the
    query and key projections at load (as the original Llama checkpoints have them), so that pairs
    are neighbours: scores do not change, and one complex product replaces three strided operators.
    Frequencies as in :class:`nexusbench.models.architecture.Rope`, computed in fp32 as HF does.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        *,
        kind: Kind = "default",
        factor: float = 1.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_max_len: int = 8192,
        device: torch.device | str = "cpu",
    ) -> None:
        pairs = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float()
        inverse = 1.0 / (theta ** (pairs / head_dim))
        if kind == "linear":
            inverse = inverse / factor
        elif kind == "llama3":
            wavelength = 2 * math.pi / inverse
            low, high = original_max_len / low_freq_factor, original_max_len / high_freq_factor
            smooth = (original_max_len / wavelength - low_freq_factor) / (
                high_freq_factor - low_freq_factor
            )
            blended = (1 - smooth) * inverse / factor + smooth * inverse
            inverse = torch.where(
                wavelength > low,
                inverse / factor,
                torch.where(wavelength < high, inverse, blended),
            )
        self.inverse_frequencies = inverse
        self._lock = threading.Lock()
        self._table = self._rotations(256)

    def at(self, positions: torch.Tensor, longest: int) -> torch.Tensor:
        """[T] -> [T, 1, head_dim / 2]; ``longest`` is the largest position."""
        return self.table(longest).index_select(0, positions).unsqueeze(1)

    def table(self, longest: int) -> torch.Tensor:
        """The rotations of all positions up to ``longest`` at least; it never gets shorter."""
        with self._lock:  # two workers may extend it at once
            if longest >= len(self._table):
                self._table = self._rotations(1 << longest.bit_length())
            return self._table

    def _rotations(self, count: int) -> torch.Tensor:
        with torch.inference_mode():
            places = torch.arange(count, device=self.inverse_frequencies.device).float()
            angles = torch.outer(places, self.inverse_frequencies)
            return torch.complex(angles.cos(), angles.sin())


def rotate_(x: torch.Tensor, rotations: torch.Tensor, norm: RmsNorm | None = None) -> None:
    """Rotate [T, heads, head_dim] in place by [T, 1, head_dim / 2], in fp32.

    ``norm``, over head_dim and in fp32, is applied first (Qwen3).
    """
    tokens, heads, size = x.shape
    pairs = x if x.dtype == torch.float32 else x.float()
    if norm is not None:
        pairs = norm(pairs)
    torch.view_as_complex(pairs.view(tokens, heads, size // 2, 2)).mul_(rotations)
    if pairs is not x:
        x.copy_(pairs)


def interleave(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """A view of [heads x head_dim, ...] with each head's halves interleaved, [heads, D/2, 2, ...].

    Row i of the first half and of the second become neighbours.
    """
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2)

"""Rotary position embedding on pairs of neighbours, which is one complex product per head."""

from __future__ import annotations

import math
import threading

import torch

from nexusbench.core.errors import NexusbenchError
from nexusbench.kernels.norm import RmsNorm
from nexusbench.kernels.ropes import Rope


class Rotary:
    """The rotations of all positions so far needed, [positions, dim / 2] complex numbers.

    HF checkpoints rotate value i with value i + dim / 2. The decoder permutes the rows of the
    query and key projections at load (as the original Llama checkpoints have them), so that pairs
    are neighbours: scores do not change, and one complex product replaces three strided operators.
    ``dim`` is the size of a head, or of the part of it that is rotated. Frequencies are computed in
    fp32 as HF does.
    """

    def __init__(self, dim: int, rope: Rope, device: torch.device | str = "cpu") -> None:
        self.dim, self.rope = dim, rope
        self.inverse_frequencies = inverse_frequencies(dim, rope, device)
        self._lock = threading.Lock()
        self._table = self._rotations(min(256, rope.longest or 256))

    def at(self, positions: torch.Tensor, longest: int) -> torch.Tensor:
        """[T] -> [T, 1, dim / 2]; ``longest`` is the largest position."""
        return self.table(longest).index_select(0, positions).unsqueeze(1)

    def table(self, longest: int) -> torch.Tensor:
        """The rotations of all positions up to ``longest`` at least; it never gets shorter.

        Raises NexusbenchError for a position that the rope has no frequencies for.
        """
        end = self.rope.longest
        if end and longest >= end:
            raise NexusbenchError(
                f"position {longest:,} is beyond {end:,} tokens, from where this model's LongRoPE "
                "has other frequencies for the whole sequence, which are not computed. End "
                f"requests there: --max-model-len {end}"
            )
        with self._lock:  # two workers may extend it at once
            if longest >= len(self._table):
                count = 1 << longest.bit_length()
                self._table = self._rotations(min(count, end or count))
            return self._table

    def _rotations(self, count: int) -> torch.Tensor:
        with torch.inference_mode():
            places = torch.arange(count, device=self.inverse_frequencies.device).float()
            angles = torch.outer(places, self.inverse_frequencies)
            turns = torch.complex(angles.cos(), angles.sin())
            return turns if self.rope.magnitude == 1.0 else turns.mul_(self.rope.magnitude)


def inverse_frequencies(dim: int, rope: Rope, device: torch.device | str) -> torch.Tensor:
    """Radians per position of each of ``dim / 2`` pairs, fp32."""
    pairs = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float()
    inverse = 1.0 / (rope.theta ** (pairs / dim))
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        return _llama3(inverse, rope)
    if rope.kind == "yarn":
        return _yarn(inverse, dim, rope)
    if rope.kind == "longrope":
        divisors = torch.tensor(rope.divisors, dtype=torch.float32, device=device)
        return 1.0 / (divisors * rope.theta ** (pairs / dim))
    return inverse


def _llama3(inverse: torch.Tensor, rope: Rope) -> torch.Tensor:
    wavelength = 2 * math.pi / inverse
    low = rope.original_max_len / rope.low_freq_factor
    high = rope.original_max_len / rope.high_freq_factor
    smooth = (rope.original_max_len / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
    return torch.where(
        wavelength > low,
        inverse / rope.factor,
        torch.where(wavelength < high, inverse, blended),
    )


def _yarn(inverse: torch.Tensor, dim: int, rope: Rope) -> torch.Tensor:
    """Pairs that turn often keep their frequency, those that hardly turn are interpolated."""

    def pair_that_turns(times: float) -> float:
        wavelength = rope.original_max_len / (times * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    places = torch.arange(dim // 2, dtype=torch.float32, device=inverse.device)
    kept = 1 - ((places - first) / (last - first)).clamp(0, 1)
    return inverse / rope.factor * (1 - kept) + inverse * kept


def rotate_(x: torch.Tensor, rotations: torch.Tensor, norm: RmsNorm | None = None) -> None:
    """Rotate [T, heads, head_dim] in place by [T, 1, dim / 2], in fp32: the first ``dim`` values of
    each head.

    ``norm``, over head_dim and in fp32, is applied first (Qwen3).
    """
    dim = 2 * int(rotations.shape[-1])
    pairs = x if x.dtype == torch.float32 else x.float()
    if norm is not None:
        pairs = norm(pairs)
    turned = pairs[..., :dim].view(*x.shape[:2], dim // 2, 2)
    torch.view_as_complex(turned).mul_(rotations)
    if pairs is not x:
        x.copy_(pairs)


def interleave_(rows: torch.Tensor, head_dim: int, dim: int) -> None:
    """Interleave, in place, the halves of the first ``dim`` of each head's ``head_dim`` rows: row i
    of the first half and of the second become neighbours.
    """
    part = rows.view(-1, head_dim, *rows.shape[1:])[:, :dim]
    halves = part.view(len(part), 2, dim // 2, *rows.shape[1:])
    part.copy_(halves.transpose(1, 2).flatten(1, 2).clone())

"""Packed integers and 4-bit floats -> values. Pure functions of tensors on the CPU."""

from __future__ import annotations

import torch

# AutoAWQ's GEMM layout: nibble p of a word holds the column ORDER[p] of its eight; inverted, the
# nibble that holds column c.
_AWQ_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
# E2M1 by its code: sign, two bits of exponent, one of mantissa (OCP Microscaling Formats, 5.3.3)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_WORD = 32  # bits of an int32


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words [R, C] -> unsigned values as int32: those of a word, lowest bits first, are
    neighbours along ``dim``, which grows by 32 / ``bits``.
    """
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    rows, columns = words.shape
    if dim == 0:
        each = (words.unsqueeze(1) >> shifts.view(1, -1, 1)) & mask
        return each.reshape(rows * len(shifts), columns)
    return ((words.unsqueeze(2) >> shifts) & mask).reshape(rows, columns * len(shifts))


def unpacked_awq(words: torch.Tensor) -> torch.Tensor:
    """int32 words [R, C] of AWQ's GEMM layout -> 4-bit values [R, 8 C] as int32."""
    each = unpacked(words, 4, dim=1).view(*words.shape, 8)
    return each[:, :, list(_AWQ_NIBBLE_OF_COLUMN)].flatten(1)


def unpacked_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Bytes [..., N] of two 4-bit floats, the first in the low nibble -> float32 [..., 2 N]."""
    table = torch.tensor(_E2M1)
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1)
    return table[nibbles.int()].flatten(-2)


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """Bytes of E8M0 -> float32: 2 to the power of each less 127, NaN for 255."""
    return exponents.view(torch.float8_e8m0fnu).float()

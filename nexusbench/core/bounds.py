"""Ranges of the numbers in a GPU file."""

from __future__ import annotations

from typing import Annotated

import msgspec


class NumberBounds(msgspec.Struct, frozen=True):
    """The range of a number in a GPU file: above ``least`` (with ``zero``: at least 0), at most
    ``most``. Far beyond any GPU, and such that no time overflows.
    """

    least: float = 0.0
    most: float = 1e9
    zero: bool = False


Efficiency = Annotated[float, NumberBounds(least=0.01, most=1.0)]
Fraction = Annotated[float, NumberBounds(most=1.0, zero=True)]
Micros = Annotated[float, NumberBounds(most=1e6, zero=True)]  # up to a second
Interference = Annotated[float, NumberBounds(most=1e3, zero=True)]  # up to a thousand times slower
Throughput = Annotated[float, NumberBounds(least=0.1)]
# Above a half, fewer SMs would compute more.
ClockGain = Annotated[float, NumberBounds(most=0.5, zero=True)]
LinkRate = Annotated[float, NumberBounds(least=0.001)]
Curve = tuple[tuple[float, float], ...]
# Ten times today's largest GPU; keeps a slipped digit from making millions of splits.
SmCount = Annotated[int, NumberBounds(most=2048)]

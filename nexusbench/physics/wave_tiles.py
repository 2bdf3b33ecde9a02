"""Products with scales of blocks on Hopper, whose kernel (DeepGEMM) takes the tile of fewest waves.

The tile is chosen anew for every shape: the fewest waves over the SMs, then the fullest last wave,
then the one that wastes least. So time does not grow evenly with rows. Three things decide the rest
(docs/fidelity.md): a tile takes its operands at a limited rate, and a step of K has a latency;
where a tile is no divisor of a block of scales, two scales change within it, which slows its
tensor cores; and one full wave of the largest tiles takes three times as long as each of two waves.
The last is measured on H100 and H200 alike, over all N and K, and not explained.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import msgspec

from nexusbench.core.kernel_constants import WaveConstants

HEIGHTS, WIDTHS = (64, 128, 256), range(16, 193, 16)
_BLOCK = 128  # columns, and values of K, that share a scale
_UNIT = 64  # rows that a group of threads computes at a time; those of none are left out
# Tiles that one full wave slows: so large, and either of whole blocks of scales or with a loop that
# the kernel unrolls for parts of them.
_LARGE, _UNROLLED = 128 * 192, 4
_FULL = 0.9  # share of the units of a wave that have rows, from which on it counts as full


class WaveTile(msgspec.Struct, frozen=True, gc=False):
    """Tiles of ``height`` rows and ``width`` columns: ``tiles`` of them in ``waves`` waves."""

    height: int
    width: int
    tiles: int
    waves: int
    full: bool  # nearly every unit of rows is computed


@lru_cache(maxsize=1 << 14)
def wave_tile(rows: int, outputs: int, sms: int) -> WaveTile:
    """The tile of a product with ``rows`` rows and ``outputs`` columns on ``sms`` SMs."""
    best, rank = (0, 0), (0, 0)
    for height in HEIGHTS:
        for width in WIDTHS:
            if not _legal(height, width):
                continue
            tiles = -(-rows // height) * -(-outputs // width)
            waves = -(-tiles // sms)
            own = -waves, tiles - (waves - 1) * sms
            if best == (0, 0) or own > rank or (own == rank and _wastes_less(
                (height, width), best, rows, outputs
            )):  # fmt: skip
                best, rank = (height, width), own
    height, width = best
    high = -(-rows // height)
    units = -(-rows // _UNIT) / (high * height // _UNIT)
    tiles = high * -(-outputs // width)
    return WaveTile(height, width, tiles, -rank[0], units >= _FULL)


def _legal(height: int, width: int) -> bool:
    """Whether the accumulators fit the registers, and at most two scales meet in a tile."""
    if height > 128 and width > 128:
        return False
    return width <= _BLOCK or gcd(width, _BLOCK) == width - _BLOCK


def _wastes_less(own: tuple[int, int], best: tuple[int, int], rows: int, outputs: int) -> bool:
    """Whether ``own`` is preferred of two tiles that make the same waves: the smaller of one height
    or width, else the wider one within the shape.
    """
    (height, width), (high, wide) = own, best
    if height == high or width == wide:
        return height * width < high * wide
    return width > wide and width <= outputs and height <= rows


def wave_tile_ns(own: WaveConstants, tile: WaveTile, inputs: int, rate: float) -> float:
    """Ns of one tile over ``inputs`` values of K at ``rate`` FLOP per ns of an SM."""
    computing = 2.0 * tile.height * tile.width * inputs / rate
    if _BLOCK % tile.width:
        computing *= own.uneven
    feeding = (tile.height + tile.width) * inputs / own.sm_gbps
    taken = max(computing, feeding) + own.step_us * inputs  # us per 1,000: ns each
    if tile.waves == 1 and tile.full and tile.height * tile.width >= _LARGE:
        whole = _BLOCK // gcd(tile.width, _BLOCK)
        if whole <= _UNROLLED:
            taken *= own.single_wave
    return taken

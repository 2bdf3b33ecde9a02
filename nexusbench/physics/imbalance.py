"""Experts that lie whole on one of several GPUs: what the GPU has to do that has most of it.

Every layer waits for that GPU, since the tokens of all are put together again after the experts.
With tokens that choose at random, the experts that a GPU's share has touched, and its rows, scatter
about their means; of as many GPUs the largest is the mean and so many standard deviations more.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from nexusbench.physics.experts import HEIGHTS, Routing, expected_tiles, power, uniform

# Expected largest of so many independent standard normal numbers (Harter, Biometrika 48, 1961).
_LARGEST = {
    1: 0.0, 2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.766, 32: 2.0697, 64: 2.3437, 128: 2.5946,
    256: 2.8269, 512: 3.044, 1024: 3.2485,
}  # fmt: skip
_COUNTS = tuple(_LARGEST)


@lru_cache(maxsize=4096)
def busiest(tokens: int, experts: int, chosen: int, gpus: int, skew: float = 1.0) -> Routing:
    """:func:`uniform` of the GPU that has most of it.

    Counts of equally large shares whose sum is fixed are as far apart as independent ones of
    variance Var - Cov. Of touched experts that is held (q1 - q2), with q1 and q2 the chances that
    one expert, and that two, are not chosen by any token; of rows tokens x chosen / gpus x
    (experts - chosen) / (experts - 1), as each token draws its experts without putting them back.
    """
    mean = uniform(tokens, experts, chosen, gpus, skew)
    if gpus == 1 or not tokens or chosen >= experts:
        return mean
    above = _largest(gpus)
    left = experts - chosen
    none = power(left / experts, tokens)
    neither = power(left * (left - 1.0) / (experts * (experts - 1.0)), tokens)
    apart = _root(max(0.0, mean.held * (none - neither)))
    rows = mean.rows + above * _root(tokens * chosen / gpus * left / (experts - 1.0))
    rows = min(rows, mean.assigned)
    touched = min(mean.held, rows, mean.touched + above * apart)
    tiles = []
    for known, height in zip(mean.tiles, HEIGHTS, strict=True):
        more = expected_tiles(touched, rows, height)
        tiles.append(known * more / expected_tiles(mean.touched, mean.rows, height))
    return Routing(mean.tokens, mean.assigned, mean.held, touched, rows, tuple(tiles))


def _largest(gpus: int) -> float:
    """Of so many standard normal numbers; linear between those that are listed."""
    at = bisect_left(_COUNTS, gpus)
    high = _COUNTS[min(at, len(_COUNTS) - 1)]
    if high <= gpus:
        return _LARGEST[high]
    low = _COUNTS[at - 1]
    share = (gpus - low) / (high - low)
    return _LARGEST[low] + share * (_LARGEST[high] - _LARGEST[low])


def _root(value: float) -> float:
    """The square root by Newton's method: only + - * / give the same bits everywhere."""
    if value <= 0.0:
        return 0.0
    found = max(1.0, value)
    for _ in range(64):
        closer = 0.5 * (found + value / found)
        if closer >= found:
            break
        found = closer
    return found

"""Median, outliers and the interval of a few samples; plain Python, no dependencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

OUTLIER_MADS = 5.0
# A MAD of a normal law is this share of its standard deviation.
_MAD_TO_SIGMA = 1.4826
# A sample closer to the median than this share of it is never an outlier: the MAD of a few samples
# is small by chance now and then.
_LEAST_DEVIATION = 0.03
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal law's.
_T95 = (
    math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
    2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060,
    2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class MedianEstimate(msgspec.Struct, frozen=True):
    """The median of the samples that are no outliers, and the 95 % half-width as a share of it.

    The half-width is Student's for the mean of the same samples, which for step times without
    outliers is close to the median's.
    """

    value: float
    interval: float
    outliers: tuple[int, ...]


def estimate(samples: Sequence[float]) -> MedianEstimate:
    """What ``samples`` (at least one) say; outliers are further from the median than 5 scaled MADs.

    With fewer than five samples nothing is called an outlier.
    """
    outliers = find_outliers(samples)
    kept = [value for position, value in enumerate(samples) if position not in outliers]
    middle = median(kept)
    return MedianEstimate(middle, half_width(kept) / middle if middle else math.inf, outliers)


def find_outliers(samples: Sequence[float]) -> tuple[int, ...]:
    """Positions of outliers, by median absolute deviation.

    More than a fifth of the samples are no outliers but a second mode, and none is marked.
    """
    if len(samples) < 5:
        return ()
    middle = median(samples)
    spread = median([abs(value - middle) for value in samples]) * _MAD_TO_SIGMA
    limit = max(OUTLIER_MADS * spread, _LEAST_DEVIATION * abs(middle))
    found = tuple(i for i, value in enumerate(samples) if abs(value - middle) > limit)
    return found if len(found) <= len(samples) / 5 else ()


def half_width(samples: Sequence[float]) -> float:
    """Of the 95 % interval of the mean; infinite for a single sample."""
    count = len(samples)
    if count < 2:
        return math.inf
    mean = math.fsum(samples) / count
    variance = math.fsum((value - mean) * (value - mean) for value in samples) / (count - 1)
    t = _T95[count - 1] if count <= len(_T95) else 1.96
    return t * math.sqrt(variance / count)


def falling(values: Sequence[float]) -> list[float]:
    """The non-increasing sequence that is closest in squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] < mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]
